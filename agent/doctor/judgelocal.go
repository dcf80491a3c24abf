package doctor

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/internal/certfile"
	"github.com/bodkin-net/bodkin/punch/rawudp"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// unconfigured is what checks say that rest on the configuration.
func unconfigured(f *Facts) Finding {
	if f.Config.Missing {
		return skipped("no configuration at %s", f.Config.Path)
	}
	return skipped("the configuration cannot be read")
}

func judgeConfig(f *Facts) Finding {
	c := f.Config
	switch {
	case c.Missing:
		return skipped("no configuration at %s: this machine has not joined; the defaults are looked at", c.Path).
			mend("bodkin join https://CONNECTOR:7443 --token TOKEN")
	case errors.Is(c.Err, fs.ErrPermission):
		return skipped("%s: run doctor as root", c.Err)
	case c.Err != nil:
		return problem(Fail, "%s", c.Err).
			meaning("the agent does not start, or goes on with what it read before").
			mend("correct %s (docs/configuration.md)", c.Path)
	case c.Whole == nil:
		return ok("%s, %s", c.Path, describe(c))
	case certificateFails(f):
		return ok("%s can be read; what the agent would refuse is the certificate", c.Path)
	}
	return problem(Fail, "%s", c.Whole).
		meaning("the agent does not start").
		mend("correct %s (docs/configuration.md)", c.Path)
}

func describe(c ConfigFacts) string {
	return fmt.Sprintf("%s, rendezvous %s", strings.ToLower(c.Config.Endpoint.Type), c.Config.Rendezvous)
}

func certificateFails(f *Facts) bool { return judgeCertificateFiles(f).Verdict == Fail }

func judgeCertificate(f *Facts) Finding {
	files := judgeCertificateFiles(f)
	if x, is := revoked(f); is && files.Verdict != Fail {
		return x
	}
	return files
}

// revoked finds that the rendezvous says so to the running agent. Its words are all
// there is: what ends a session has no code.
func revoked(f *Facts) (Finding, bool) {
	s := f.Agent.Status
	if s.Rendezvous.Connected || !strings.Contains(s.Rendezvous.Error, "was revoked") {
		return Finding{}, false
	}
	x := problem(Fail, "revoked: %s", s.Rendezvous.Error).
		meaning("neither the rendezvous nor the peers let this node in: no session and no tunnel")
	if strings.Contains(s.Rendezvous.Error, " of "+string(s.Node)+" was revoked") { // a certificate; the name may be another machine's now
		x = x.mend("on the rendezvous: bodkin token create --name %s --replace", s.Node)
	} else {
		x = x.mend("on the rendezvous: bodkin node delete %s", s.Node).mend("there: bodkin token create --name %s", s.Node)
	}
	return x.mend("here: bodkin join %s --token TOKEN", f.Config.Config.Rendezvous), true
}

func judgeCertificateFiles(f *Facts) Finding {
	cfg, c := f.Config.Config, f.Cert
	renew := "bodkin join again with a new token, or replace " + cfg.Certificate + " and " + cfg.Key
	switch {
	case c.Err != nil && f.Config.Missing && errors.Is(c.Err, fs.ErrNotExist):
		return unconfigured(f)
	case errors.Is(c.Err, fs.ErrPermission):
		return skipped("%s: run doctor as root", c.Err)
	case c.Err != nil:
		return problem(Fail, "%s", c.Err).
			meaning("the agent has nothing to prove itself with: no session and no tunnel").
			mend("%s", renew)
	case c.Untrusted != nil:
		return problem(Fail, "%s is not signed by %s: %s", cfg.Certificate, cfg.CA, c.Untrusted).
			meaning("neither the rendezvous nor the peers believe this node").
			mend("put the CA that issued it into %s, or: %s", cfg.CA, renew)
	}
	validity := certfile.ValidityOf(c.Leaf, f.Now)
	words := validity.Explain(c.Leaf, f.Now, "no new session and no new tunnel")
	switch validity {
	case certfile.Expired:
		return problem(Fail, "%s", words).meaning("peers and rendezvous refuse it").mend("%s", renew).mend("timedatectl   # if it is the clock that is wrong")
	case certfile.NotYetValid:
		return problem(Fail, "%s", words).meaning("peers and rendezvous refuse it until then").mend("timedatectl set-ntp true")
	case certfile.EndsSoon:
		return problem(Warn, "%s", words).meaning("tunnels cannot be made anew after that").mend("%s", renew)
	}
	if c.KeyMode&0o077 != 0 {
		return problem(Warn, "%s has mode %#o", cfg.Key, c.KeyMode).
			meaning("others on this machine can be this node").
			mend("chmod 600 %s", cfg.Key)
	}
	return ok("%s, until %s", c.Leaf.Subject.CommonName, c.Leaf.NotAfter.UTC().Format(time.DateOnly))
}

// skewTolerated is what a clock may be off by: certificates begin an hour in the
// past, and an operator who compares logs needs better.
const skewTolerated = 2 * time.Minute

func judgeClock(f *Facts) Finding {
	const setClock = "timedatectl set-ntp true   # or: chronyc makestep"
	date, leaf := f.TCP.Date, f.Cert.Leaf
	now := f.Now.UTC().Format(time.DateTime)
	if date.IsZero() {
		switch {
		case leaf == nil:
			return skipped("there is no certificate, and the rendezvous does not tell its time")
		case certfile.ValidityOf(leaf, f.Now) == certfile.NotYetValid:
			return problem(Fail, "%s UTC, before the certificate's begin, %s", now, leaf.NotBefore.UTC().Format(time.DateTime)).
				meaning("no new session and no new tunnel").mend(setClock)
		}
		return ok("%s UTC; the rendezvous could not be asked", now)
	}
	skew := f.TCP.At.Sub(date)
	off := skew.Abs() > skewTolerated
	direction := "ahead of"
	if skew < 0 {
		direction = "behind"
	}
	found := fmt.Sprintf("%s UTC, %s %s the rendezvous' clock", now, skew.Abs().Round(time.Second), direction)
	switch {
	case off && leaf != nil && !certfile.ValidityOf(leaf, f.Now).Holds() && certfile.ValidityOf(leaf, date).Holds():
		return problem(Fail, "%s; by that one the certificate is valid", found).
			meaning("this machine's clock is wrong: no new session and no new tunnel").mend(setClock)
	case off && isTimeError(f.TCP.TLS):
		return problem(Fail, "%s; by this one the rendezvous' certificate is not valid", found).
			meaning("no new session").mend(setClock)
	case off:
		return problem(Warn, "%s", found).
			meaning("certificates are judged by a wrong time, and logs cannot be compared").mend(setClock)
	}
	return ok("%s UTC, as the rendezvous'", now)
}

// isTimeError: a certificate was refused for its validity.
func isTimeError(err error) bool {
	invalid, is := errors.AsType[x509.CertificateInvalidError](err)
	return is && invalid.Reason == x509.Expired
}

func judgeCapabilities(f *Facts) Finding {
	switch {
	case len(f.Agent.Lacks) > 0:
		return problem(Fail, "the agent (pid %d) lacks %s", f.Agent.PID, strings.Join(f.Agent.Lacks, " and ")).
			meaning("it cannot send from charon's port, nor around IPsec policies").
			mend("run it as root, or in its unit: AmbientCapabilities=CAP_NET_RAW CAP_NET_ADMIN").
			mend("%s", f.Units.restartAgent())
	case errors.Is(f.Raw, rawudp.ErrPermission):
		return problem(Fail, "%s", f.Raw).
			meaning("as who runs this now, neither the agent nor most checks here can work").
			mend("sudo bodkin doctor   # the agent's own rights are in its unit: AmbientCapabilities=CAP_NET_RAW CAP_NET_ADMIN")
	case f.Raw != nil:
		return problem(Fail, "%s", f.Raw).
			meaning("the agent cannot share charon's port: no punching").
			mend("look for a security module that forbids raw sockets: journalctl -k | grep -i denied")
	}
	if f.Agent.PID != 0 {
		return ok("raw sockets can be opened, and the agent (pid %d) may", f.Agent.PID)
	}
	return ok("raw sockets can be opened")
}

// spaceLow is where a disk is as good as full: the agent's files take kilobytes.
const spaceLow = 8 << 20

func judgeState(f *Facts) Finding {
	s, dir := f.State, f.Config.Config.StateDir
	const effect = "tunnels work, but after a crash the agent would not know its own connections"
	switch {
	case s.OwnedErr != nil && !errors.Is(s.OwnedErr, fs.ErrPermission):
		return problem(Fail, "%s", s.OwnedErr).
			meaning("the agent does not start with a damaged list of its connections").
			mend("mv %s %s.damaged; end the tunnels it listed: swanctl --list-conns, swanctl --terminate --ike NAME",
				filepath.Join(dir, stateFile), filepath.Join(dir, stateFile))
	case errors.Is(s.Err, fs.ErrPermission) && !f.Root:
		return skipped("%s: run doctor as root", s.Err)
	case s.Err != nil:
		return problem(Fail, "%s", s.Err).meaning(effect).
			mend("df -h %s; mount -o remount,rw its file system, or free some space", s.Dir)
	case s.Free < spaceLow:
		return problem(Warn, "%s: %d kB free", s.Dir, s.Free>>10).meaning(effect + " once it is full").
			mend("free some space: du -xh --max-depth=2 / | sort -h | tail")
	case f.Agent.Err == nil && f.Agent.Status.StateProblem != "":
		return problem(Warn, "the agent says: %s", f.Agent.Status.StateProblem).meaning(effect).
			mend("%s", f.Units.restartAgent()).mend("if it stays: the agent's log says why")
	case s.Missing:
		return ok("%s is not there yet: the agent makes it", dir)
	}
	return ok("%s takes writes, %d MB free", dir, s.Free>>20)
}

func judgeAgent(f *Facts) Finding {
	a := f.Agent
	if a.Err != nil {
		return judgeAbsentAgent(f)
	}
	if x, is := revoked(f); is {
		return x
	}
	s := a.Status
	switch {
	case !s.Rendezvous.Connected:
		why := s.Rendezvous.Error
		if why == "" {
			why = "it is connecting"
		}
		return problem(Fail, "%s runs (pid %d) and is not connected to the rendezvous: %s", s.Node, a.PID, why).
			meaning("tunnels that stand go on; none is made anew").
			mend("mend what rendezvous-tcp, certificate and clock say; on the rendezvous: bodkin node show %s", s.Node)
	case !s.Charon.Connected:
		return problem(Fail, "%s runs (pid %d) and does not reach charon at %s: %s", s.Node, a.PID, s.Charon.Address, s.Charon.Error).
			meaning("no tunnel can be made").mend("mend what vici says")
	case f.Version != "" && s.Version != f.Version:
		return problem(Warn, "the agent runs version %s, and this program is %s", s.Version, f.Version).
			meaning("it was replaced and not restarted").
			mend("%s", f.Units.restartAgent())
	}
	return ok("%s, pid %d, connected, %s", s.Node, a.PID, peers(s.Tunnels))
}

func judgeAbsentAgent(f *Facts) Finding {
	a := f.Agent
	switch {
	case errors.Is(a.Err, fs.ErrPermission):
		return skipped("%s: run doctor as root", a.Err)
	case a.Service == "failed":
		return problem(Fail, "%s has failed", service).
			meaning("tunnels that stand go on; none is made anew").
			mend("journalctl -u bodkin-agent -n 20").mend("systemctl restart bodkin-agent")
	case f.Config.Missing:
		return unconfigured(f)
	}
	f2 := problem(Warn, "it does not run: %s", a.Err).
		meaning("tunnels that stand go on; none is made anew")
	if a.Service != "" {
		return f2.mend("systemctl enable --now bodkin-agent")
	}
	return f2.mend("bodkin agent --config %s", f.Config.Path)
}

// peers counts tunnels by their state.
func peers(tunnels []agent.TunnelStatus) string {
	if len(tunnels) == 0 {
		return "no peers"
	}
	count := map[string]int{}
	for _, t := range tunnels {
		count[t.State]++
	}
	var parts []string
	for _, state := range []string{string(wire.OutcomeDirect), "relayed", "down"} {
		if n := count[state]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, state))
		}
	}
	noun := "peers"
	if len(tunnels) == 1 {
		noun = "peer"
	}
	return fmt.Sprintf("%d %s: %s", len(tunnels), noun, strings.Join(slices.Compact(parts), ", "))
}

func judgeRewrite(f *Facts) Finding {
	if p := f.Config.Config.Punch; p != wire.PolicyAuto && f.Config.readable() {
		return skipped("punch: %s: ports are not searched for", p)
	}
	if !f.Root && errors.Is(f.Rewrite, fs.ErrPermission) {
		return skipped("%s: run doctor as root", f.Rewrite)
	}
	if f.Rewrite != nil {
		return problem(Warn, "%s", f.Rewrite).
			meaning("pairs in which this node is behind a symmetric NAT and the peer filters by port stay relayed").
			mend("modprobe -a nf_tables nft_nat nft_ct nf_conntrack_netlink").
			mend("printf '%%s\\n' nf_tables nft_nat nft_ct nf_conntrack_netlink > /etc/modules-load.d/bodkin-nft.conf")
	}
	return ok("nftables and conntrack can be used")
}

// How full, in percent, a conntrack table may be: it fills in bursts.
const (
	conntrackHigh = 80
	conntrackFull = 98
)

func judgeConntrack(f *Facts) Finding {
	count, most := f.Kernel.setting("netfilter/nf_conntrack_count"), f.Kernel.setting("netfilter/nf_conntrack_max")
	if most == 0 {
		return ok("not in use")
	}
	percent := count * 100 / most
	if percent < conntrackHigh {
		return ok("%d of %d entries", count, most)
	}
	verdict := Warn
	if percent >= conntrackFull {
		verdict = Fail
	}
	return problem(verdict, "%d of %d entries: %d %%", count, most, percent).
		meaning("the kernel drops packets of new flows, checks and IKE among them, when it is full").
		mend("sysctl -w net.netfilter.nf_conntrack_max=%d   # and in /etc/sysctl.d", most*4).
		mend("conntrack -L | awk '{print $1}' | sort | uniq -c   # what fills it")
}
