package agent

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/internal/yamlfile"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Of every key somebody has decided whether a running agent takes it on.
func TestAdopt(t *testing.T) {
	file := Config{
		Rendezvous: "https://other:7443", Punch: wire.PolicyNever, Probe: ProbeConfig{Rate: 1, Ports: 2, Max: 3},
		PortMapping: true, Metered: true, Renew: true, TeardownOnExit: true, LogLevel: "debug", Mark: 7,
	}
	var running Config
	running.adopt(file)
	var now, later []string
	for _, c := range yamlfile.Diff(Config{}, running) {
		now = append(now, c.Key)
	}
	for _, c := range yamlfile.Diff(running, file) {
		later = append(later, c.Key)
	}
	if got, want := strings.Join(now, " "), "punch probe.rate probe.ports probe.max portMapping metered renew teardownOnExit logLevel"; got != want {
		t.Errorf("taken on at once: %s; want %s", got, want)
	}
	if got, want := strings.Join(later, " "), "rendezvous mark"; got != want {
		t.Errorf("at the next start: %s; want %s", got, want)
	}
}

func TestReconfigure(t *testing.T) {
	var logged bytes.Buffer
	var ended error
	d := testDaemon(t, "store")
	d.log = slog.New(slog.NewTextHandler(&logged, nil))
	d.signalling = &link{}
	d.link.restart = func(why error) { ended = why }
	running := DefaultConfig()
	d.cfg = running

	file := running
	file.LogLevel = "debug"
	file.Mark = 0x42
	d.reconfigure(t.Context(), file)
	if got := logged.String(); !strings.Contains(got, `level=INFO msg="configuration changed" key=logLevel before=info after=debug`) ||
		!strings.Contains(got, `level=WARN msg="configuration changed: takes effect at the next start" key=mark before=0 after=66`) {
		t.Errorf("logged:\n%s", got)
	}
	if d.cfg.LogLevel != "debug" || d.cfg.Mark != 0 {
		t.Errorf("level %s and mark %d in force; want debug and 0", d.cfg.LogLevel, d.cfg.Mark)
	}
	if ended != nil {
		t.Errorf("the session was ended: %v", ended)
	}

	// What the rendezvous knows from the hello needs another hello.
	file.Metered = true
	d.reconfigure(t.Context(), file)
	if ended == nil || !d.signalling.metered.Load() {
		t.Errorf("session ended with %v, metered %v; want one that begins anew, metered", ended, d.signalling.metered.Load())
	}

	logged.Reset()
	file.Mark = 0
	d.reconfigure(t.Context(), file)
	if !strings.Contains(logged.String(), "nothing has changed") {
		t.Errorf("logged:\n%s", logged.String())
	}
}
