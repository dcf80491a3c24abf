package rewrite

import (
	"bufio"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// setAndHangEnv makes the test binary the process that TestSweep kills.
const setAndHangEnv = "BODKIN_TEST_SET_AND_HANG"

// setAndHang sets rules for two owners, says so, and waits to be killed.
func setAndHang() {
	fail := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	table, err := Open(slog.New(slog.DiscardHandler))
	fail(err)
	other := toPeer
	other.Peer = netip.MustParseAddrPort("10.9.0.3:4500")
	fail(table.Set("kept", other, hit))
	fail(table.Set("gone", toPeer, hit))
	fmt.Println("set")
	select {}
}

// TestSweep kills a process that has rules in force, as kill -9 does.
func TestSweep(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(self)
	child.Env = append(os.Environ(), setAndHangEnv+"=1")
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.host.Do(func() { err = child.Start() })
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	_ = child.Process.Kill()
	_ = child.Wait()
	if err != nil || line != "set\n" {
		t.Fatalf("child: %q, %v", line, err)
	}
	p.wantRewritten(t, hit) // the rules outlive their process

	table := open(t, p.host)
	if err := table.Sweep(func(owner string) bool { return owner == "kept" }); err != nil {
		t.Fatalf("Sweep: %v", err)
	}
	kept := Flow{Local: shared, Peer: netip.MustParseAddrPort("10.9.0.3:4500")}
	wantRules(t, table, Rule{"kept", kept, hit})
	if out := p.host.Run(t, "nft", "list", "ruleset"); strings.Count(out, "comment") != strings.Count(out, `comment "kept"`) {
		t.Errorf("rules are left:\n%s", out)
	}
	if entries := p.host.Run(t, "conntrack", "-L"); strings.Contains(entries, "40007") {
		t.Errorf("entries of a swept rewrite are left:\n%s", entries)
	}
	if err := table.Sweep(func(string) bool { return false }); err != nil {
		t.Fatalf("Sweep: %v", err)
	}
	wantNoTable(t, p.host)
}
