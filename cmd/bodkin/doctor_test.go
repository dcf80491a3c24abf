package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/agent/doctor"
)

func TestPrintDoctor(t *testing.T) {
	r := doctor.Report{
		TookMs: 321,
		Counts: map[doctor.Verdict]int{doctor.OK: 1, doctor.Fail: 1, doctor.Warn: 1, doctor.Skipped: 1},
		Findings: []doctor.Finding{
			{ID: "vici", Verdict: doctor.OK, Found: "charon 5.9.8"},
			{ID: "esp", Verdict: doctor.Fail, Found: "no handler", Means: "no ESP", Mend: []string{"modprobe esp4", "reboot"}},
			{ID: "tunnel-firewall", Verdict: doctor.Warn, Found: "a rule", Means: "one way only", Mend: []string{"nft …"}},
			{ID: "mtu", Verdict: doctor.Skipped, Found: "no answer"},
		},
	}
	const want = `✓ ok       vici             charon 5.9.8
✗ problem  esp              no handler
           means: no ESP
           mend:  modprobe esp4
                  reboot
! warning  tunnel-firewall  a rule
           means: one way only
           mend:  nft …
- skipped  mtu              no answer

1 problem, 1 warning in 4 checks, 1 of them skipped (0.3 s)
`
	if got := printed(func(p *printer) { printDoctor(p, r, false) }); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := printed(func(p *printer) { printDoctor(p, r, true) }); !strings.Contains(got, "looks at: charon answers on its VICI socket") {
		t.Errorf("verbose:\n%s", got)
	}
	for _, c := range doctor.Catalogue() {
		if len(c.ID) > checkWidth {
			t.Errorf("%s is wider than its column", c.ID)
		}
	}
}

func TestDoctorCommandLine(t *testing.T) {
	out, err := run(t, "", "doctor", "--list")
	for _, c := range doctor.Catalogue() {
		if err != nil || !strings.Contains(out, string(c.ID)) {
			t.Errorf("--list, %v, lacks %s:\n%s", err, c.ID, out)
		}
	}
	if out, err := run(t, "", "doctor", "--list", "-o", "json"); err != nil || !strings.Contains(out, `"id": "ike-port"`) {
		t.Errorf("--list -o json: %v\n%s", err, out)
	}
	if _, err := run(t, "", "doctor", "--check", "luck"); exitCode(err) != exitConfig || !strings.Contains(err.Error(), "ike-port") {
		t.Errorf("an unknown check: %v", err)
	}
	missing := filepath.Join(t.TempDir(), "agent.yaml")
	if out, err := run(t, "", "doctor", "--check", "config", "--config", missing); err != nil || !strings.Contains(out, "bodkin join") {
		t.Errorf("without a configuration: %v\n%s", err, out)
	}
	// Nobody has a charon there.
	if out, err := run(t, "", "doctor", "--check", "vici", "--config", writeFile(t, "agent.yaml", "rendezvous: https://192.0.2.1:7443\nviciSocket: /nonexistent/vici\n")); !errors.Is(err, errProblems) || exitCode(err) != exitProblems || !strings.Contains(out, "✗ problem") {
		t.Errorf("without charon: %v\n%s", err, out)
	}
}
