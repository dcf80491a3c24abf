package access

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"time"

	"github.com/bodkin-net/bodkin/store"
)

// tokenPrefix lets people and secret scanners know a token when they see one.
const tokenPrefix = "bodkin-access-"

// NewToken makes a bearer token and the hash to keep of it. The token is random
// and long: hashing slowly would protect nothing more.
func NewToken() (token, hash string) {
	token = tokenPrefix + rand.Text() // 130 bits
	return token, Hash(token)
}

// Hash is SHA-256 in hexadecimal.
func Hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// find looks for the credential of a token. It compares with all of them, so that
// the time it takes tells nothing of how near a guess was.
func find(token string, credentials []store.Credential) (found store.Credential, ok bool) {
	hash := []byte(Hash(token))
	for _, c := range credentials {
		if subtle.ConstantTimeCompare(hash, []byte(c.SecretSHA256)) == 1 {
			found, ok = c, true
		}
	}
	return found, ok
}

func expired(c store.Credential, now time.Time) bool {
	return !c.Expires.IsZero() && !now.Before(c.Expires)
}
