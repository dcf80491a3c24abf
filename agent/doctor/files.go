package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/internal/certfile"
	"github.com/bodkin-net/bodkin/punch/rewrite"
)

var errNoRendezvous = errors.New("no rendezvous is configured")

func readConfig(path string) ConfigFacts {
	f := ConfigFacts{Path: path}
	f.Config, f.Err = agent.ReadConfig(path)
	if errors.Is(f.Err, fs.ErrNotExist) {
		return ConfigFacts{Path: path, Missing: true, Config: agent.DefaultConfig()}
	}
	if f.Err != nil {
		f.Config = agent.DefaultConfig()
		return f
	}
	_, f.Whole = agent.LoadConfig(path)
	f.Subnets, f.NodeSubnets = prefixes(f.Config.Endpoint.Subnets), prefixes(f.Config.Endpoint.NodeSubnets)
	return f
}

// Units of charon, without .service: of Debian's package charon-systemd, and of
// strongswan-starter.
const (
	strongswanUnit = "strongswan"
	starterUnit    = "strongswan-starter"
)

// unitDirs are where units are installed.
var unitDirs = []string{"/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

func findUnits() (u UnitFacts) {
	_, err := os.Stat("/run/systemd/system") // sd_booted(3)
	u.Systemd = err == nil
	for _, unit := range []string{strongswanUnit, starterUnit} {
		for _, dir := range unitDirs {
			if _, err := os.Stat(filepath.Join(dir, unit+".service")); err == nil {
				u.Charon = unit
				return u
			}
		}
	}
	return u
}

// prefixes are those that can be read; the others are the configuration's fault,
// which another check tells.
func prefixes(texts []string) (out []netip.Prefix) {
	for _, s := range texts {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

func readCertificate(cfg agent.Config) (f CertFacts) {
	pair, err := tls.LoadX509KeyPair(cfg.Certificate, cfg.Key)
	if err != nil {
		f.Err = fmt.Errorf("certificate %s, key %s: %w", cfg.Certificate, cfg.Key, err)
		return f
	}
	f.Leaf = pair.Leaf
	if info, err := os.Stat(cfg.Key); err == nil {
		f.KeyMode = info.Mode().Perm()
	}
	ca, err := os.ReadFile(cfg.CA)
	if err != nil {
		f.Err = fmt.Errorf("ca: %w", err)
		return f
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		f.Err = fmt.Errorf("ca: %s holds no PEM certificate", cfg.CA)
		return f
	}
	_, f.Untrusted = f.Leaf.Verify(x509.VerifyOptions{
		Roots: pool, CurrentTime: validTime(f.Leaf, time.Now()), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return f
}

// validTime is now, or the nearest time at which the certificate is valid: who
// signed it is one question, the clock another.
func validTime(leaf *x509.Certificate, now time.Time) time.Time {
	switch certfile.ValidityOf(leaf, now) {
	case certfile.Expired:
		return leaf.NotAfter
	case certfile.NotYetValid:
		return leaf.NotBefore
	}
	return now
}

// stateFile is where the agent lists the connections that are its own.
const stateFile = "agent.json"

func gatherState(_ context.Context, f *Facts) {
	s := &f.State
	s.Dir = f.Config.Config.StateDir
	s.Owned, s.OwnedErr = readOwned(filepath.Join(s.Dir, stateFile))
	// What is not there is made by the agent.
	for {
		if _, err := os.Stat(s.Dir); err == nil || !errors.Is(err, fs.ErrNotExist) || s.Dir == filepath.Dir(s.Dir) {
			break
		}
		s.Missing, s.Dir = true, filepath.Dir(s.Dir)
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(s.Dir, &disk); err != nil {
		s.Err = fmt.Errorf("%s: %w", s.Dir, err)
		return
	}
	s.Free = disk.Bavail * uint64(disk.Bsize)
	switch {
	case disk.Flags&unix.ST_RDONLY != 0:
		s.Err = fmt.Errorf("%s: %w", s.Dir, unix.EROFS)
	case !s.Missing:
		s.Err = tryWrite(s.Dir)
	}
}

// tryWrite writes a file, as the agent does, and removes it.
func tryWrite(dir string) error {
	file, err := os.CreateTemp(dir, ".doctor-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(make([]byte, 4096))
	return errors.Join(err, file.Close())
}

func readOwned(path string) ([]string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var state struct {
		Connections map[string]string `json:"connections"`
	}
	if err == nil {
		err = json.Unmarshal(b, &state)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return slices.Sorted(maps.Keys(state.Connections)), nil
}

// gatherRewrite tries the rules in a transaction that is never in force.
func gatherRewrite(_ context.Context, f *Facts) {
	table, err := rewrite.Open(slog.New(slog.DiscardHandler))
	if err == nil {
		err = table.Close()
	}
	f.Rewrite = err
}
