package main

import "regexp"

// removed stands in a bundle where a secret was.
const removed = "[removed]"

// secretKey matches a key whose value is a secret, and what is between the two.
const secretKey = `(?i)((?:password|passwd|passphrase|pwd|secret|token|psk|cookie|private[_-]?key)["']?[ \t]*[:=][ \t]*)`

// secrets are what must not leave the machine in a bundle, and what takes its
// place. What is taken away too much costs a question; what too little, a key.
var secrets = []struct {
	what *regexp.Regexp
	with string
}{
	// PEM, of any kind of private key; one that is cut off at the end, too.
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`), removed},
	// Tokens of Bodkin's own, by their prefixes.
	{regexp.MustCompile(`bodkin-(join|access)-[A-Za-z0-9_-]+`), "bodkin-$1-" + removed},
	// What an Authorization or Cookie header carries.
	{regexp.MustCompile(`(?i)(authorization["']?\s*[:=]\s*["']?\w+)\s+[^\s"']+`), "$1 " + removed},
	{regexp.MustCompile(`(?i)\b(bearer)\s+[A-Za-z0-9+/=._~-]{16,}`), "$1 " + removed},
	// A user's password in a URL.
	{regexp.MustCompile(`(://[^/\s:@]*:)[^/\s@]+@`), "$1" + removed + "@"},
	// key: value and key=value of YAML, JSON, shell and slog, by the key's last
	// word: stunPassword, STUN_PASSWORD, "pwd". Not tokenFile, which is a path.
	{regexp.MustCompile(secretKey + `[|>][+-]?[ \t]*\n(?:[ \t]+[^\n]*(?:\n|\z))+`), "${1}" + removed + "\n"},
	{regexp.MustCompile(secretKey + `(?:"(?:[^"\\]|\\.)*"|'[^']*')`), `${1}"` + removed + `"`},
	{regexp.MustCompile(secretKey + `[^\s,;{}\[\]"'|>][^\s,;{}\[\]"']*`), "${1}" + removed},
	// Keys of the kernel's SAs, which `ip xfrm state` shows unless told not to, and
	// whatever else is as long: charon logs keys at its highest levels.
	{regexp.MustCompile(`\b0x[0-9a-fA-F]{16,}`), "0x" + removed},
	{regexp.MustCompile(`(?i)((?:\bSK_\w+|\bkey(?:mat)?|secret)\b[^\n]*=> \d+ bytes[^\n]*\n)((?:[^\n]*\b\d+: (?:[0-9A-F]{2} )+[^\n]*\n?)+)`), "$1" + removed + "\n"},
}

// scrub is text without its secrets.
func scrub(text []byte) []byte {
	for _, s := range secrets {
		text = s.what.ReplaceAll(text, []byte(s.with))
	}
	return text
}
