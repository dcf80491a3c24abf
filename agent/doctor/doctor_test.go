package doctor

import (
	"bufio"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCatalogue(t *testing.T) {
	id := regexp.MustCompile(`^[a-z][a-z0-9-]{2,14}$`)
	seen := map[ID]bool{}
	for _, c := range Catalogue() {
		if !id.MatchString(string(c.ID)) || seen[c.ID] || c.Title == "" || c.About == "" {
			t.Errorf("%+v: want a new id of at most 15 letters, a title, and what is looked at", c)
		}
		seen[c.ID] = true
		if got, err := Find(string(c.ID)); err != nil || got != c.ID {
			t.Errorf("Find(%s) = %s, %v", c.ID, got, err)
		}
	}
	if _, err := Find("luck"); err == nil || !strings.Contains(err.Error(), "ike-port") {
		t.Errorf("an unknown check: %v", err)
	}
}

// Without configuration, charon and agent each check has something to say.
func TestRunOnAnyMachine(t *testing.T) {
	r := Run(t.Context(), Options{Config: filepath.Join(t.TempDir(), "agent.yaml")})
	if len(r.Findings) != len(checks) {
		t.Fatalf("%d findings of %d checks", len(r.Findings), len(checks))
	}
	total := 0
	for _, n := range r.Counts {
		total += n
	}
	if total != len(checks) {
		t.Errorf("counts %v: want %d in all", r.Counts, len(checks))
	}
	for _, f := range r.Findings {
		if f.Verdict == "" || f.Found == "" || f.Title == "" {
			t.Errorf("%+v says nothing", f)
		}
	}
	only := Run(t.Context(), Options{Only: []ID{"state", "clock"}})
	if len(only.Findings) != 2 || only.Findings[0].ID != "clock" {
		t.Errorf("two checks chosen: %+v", only.Findings)
	}
}

func TestParseSockets(t *testing.T) {
	if bigEndian {
		t.Skip("the table below is that of a little-endian machine")
	}
	const table = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  123: 0100007F:1194 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 0
  124: B80D0120000000000000000002000000:01F4 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 0
`
	got := map[string]netip.AddrPort{}
	if err := parseSockets(bufio.NewScanner(strings.NewReader(table)), got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got["4711"].String() != "127.0.0.1:4500" || got["4712"].String() != "[2001:db8::2]:500" {
		t.Errorf("%v", got)
	}
	for _, bad := range []string{"", "0100007F", "01007F:1194", "0100007F:119411", "zz:1"} {
		if a, err := parseSocketAddr(bad); err == nil {
			t.Errorf("%q is %s", bad, a)
		}
	}
}

func TestLackingIn(t *testing.T) {
	for text, want := range map[string]string{
		"CapInh:\t0000000000000000\nCapEff:\t000001ffffffffff\n": "",
		"CapEff:\t0000000000003000\n":                            "",
		"CapEff:\t0000000000001000\n":                            "CAP_NET_RAW",
		"CapEff:\t0000000000002000\n":                            "CAP_NET_ADMIN",
		"CapEff:\t0000000000000000\n":                            "CAP_NET_ADMIN CAP_NET_RAW",
		"Name:\tbodkin\n":                                        "",
	} {
		if got := strings.Join(lackingIn(text), " "); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestOlder(t *testing.T) {
	for version, want := range map[string]bool{
		"5.9.1": true, "5.9.2": false, "5.9.14": false, "5.8.9": true, "6.0.0beta1": false, "5.9.1dr3": true, "4.6.4": true, "5.9": false, "devel": false,
	} {
		if got := older(version, oldest); got != want {
			t.Errorf("older(%s) = %v", version, got)
		}
	}
}

// Every size is that of the packet on the wire.
func TestRequestSizes(t *testing.T) {
	for _, size := range mtuSizes {
		msg, err := request(size - udpHeaders)
		if err != nil || len(msg.Raw) != size-udpHeaders {
			t.Errorf("%d: %d bytes, %v", size, len(msg.Raw)+udpHeaders, err)
		}
	}
}
