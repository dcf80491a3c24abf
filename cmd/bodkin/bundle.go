package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// Bounds of a bundle.
const (
	// sectionTimeout is for one section: each but the doctor's answers at once on a
	// machine that is well, and the doctor asks a network.
	sectionTimeout      = 10 * time.Second
	bundleDoctorTimeout = 30 * time.Second
	// sectionMax is the most that is kept of one, in bytes: a day of logs, or
	// thousands of pairs. Taking the secrets out of so much takes a second or two.
	sectionMax = 4 << 20
	// secretMax is longer than any secret: so much is dropped where a section is
	// cut, for a secret that is cut in two is not known any more.
	secretMax = 64 << 10
)

// part is a section of a bundle.
type part struct {
	name string
	// read returns what there is to keep, also beside an error.
	read    func(ctx context.Context) ([]byte, error)
	timeout time.Duration // sectionTimeout if 0
	most    int           // sectionMax if 0
	// tail: of too much the end is kept, as of a log.
	tail bool
}

// bundleManifest is manifest.json of a bundle, and what `bodkin bundle -o json`
// prints.
type bundleManifest struct {
	File     string          `json:"file"`
	At       time.Time       `json:"at"`
	Host     string          `json:"host"`
	Version  versionInfo     `json:"version"`
	Sections []bundleSection `json:"sections"`
}

// bundleSection says what became of one section.
type bundleSection struct {
	Name   string `json:"name"`
	Bytes  int    `json:"bytes"`
	TookMs int64  `json:"tookMs"`
	// Dropped is how many bytes were too many.
	Dropped int    `json:"dropped,omitempty"`
	Error   string `json:"error,omitempty"`
}

func newBundle() *cobra.Command {
	var server rendezvousFlags
	var o output
	var sources bundleSources
	var file string
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Collect what is needed to help, without secrets, into one archive",
		Long: "Bundle writes a tar.gz with what there is to know of this node: status and SAs of the agent, what doctor\n" +
			"finds, configuration, addresses, routes, XFRM policies and states, the nftables ruleset, sysctls, logs,\n" +
			"charon's version and plugins, and where a rendezvous runs or --server names one, its API's answers.\n" +
			"Private keys, tokens, passwords and ESP keys are taken out; addresses and node names are not.\n" +
			"manifest.json in it says what could not be had.",
		Example: "  sudo bodkin bundle\n  sudo bodkin bundle --file - | ssh support@example.org 'cat > edge1.tar.gz'",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			m := newManifest(file)
			if m.File == "-" {
				return writeBundle(cmd.Context(), cmd.OutOrStdout(), sources.parts(&server), &m)
			}
			if err := writeBundleFile(cmd.Context(), sources.parts(&server), &m); err != nil {
				return err
			}
			return o.print(cmd, m, func(p *printer) { printManifest(p, m) })
		},
	}
	server.registerAs(cmd, "rendezvous-socket")
	sources.agent.register(cmd)
	o.register(cmd)
	flags := cmd.Flags()
	flags.StringVarP(&file, "file", "f", "", "where to, - for standard output (./bodkin-HOST-TIME.tar.gz)")
	flags.StringVar(&sources.config, "config", "/etc/bodkin/agent.yaml", "the agent's configuration")
	flags.StringVar(&sources.rendezvousConfig, "rendezvous-config", "/etc/bodkin/rendezvous.yaml", "the rendezvous' configuration")
	flags.StringArrayVar(&sources.log, "log", nil, "a log file to take along, beside the journal; may be repeated")
	return cmd
}

func newManifest(file string) bundleManifest {
	m := bundleManifest{File: file, At: time.Now().UTC().Truncate(time.Second), Version: buildInfo(), Sections: []bundleSection{}}
	m.Host, _ = os.Hostname() // a host without a name gets a bundle, too
	if m.File == "" {
		m.File = fmt.Sprintf("bodkin-%s-%s.tar.gz", cmp.Or(m.Host, "host"), m.At.Format("20060102T150405Z"))
	}
	return m
}

// writeBundleFile writes a bundle that only its owner can read; one that is cut
// short does not stay.
func writeBundleFile(ctx context.Context, parts []part, m *bundleManifest) error {
	f, err := os.OpenFile(m.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return usageError{fmt.Errorf("--file: %w", err)}
	}
	err = errors.Join(writeBundle(ctx, f, parts, m), f.Close())
	if err != nil {
		os.Remove(m.File)
	}
	return err
}

// writeBundle collects the parts, one after the other, and adds the manifest.
func writeBundle(ctx context.Context, w io.Writer, parts []part, m *bundleManifest) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	folder := strings.TrimSuffix(filepath.Base(m.File), ".tar.gz")
	if m.File == "-" {
		folder = "bodkin"
	}
	add := func(name string, content []byte) error {
		h := tar.Header{Name: folder + "/" + name, Mode: 0o600, Size: int64(len(content)), ModTime: m.At}
		if err := t.WriteHeader(&h); err != nil {
			return err
		}
		_, err := t.Write(content)
		return err
	}
	for _, p := range parts {
		content, said := p.collect(ctx)
		m.Sections = append(m.Sections, said)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if len(content) == 0 {
			continue
		}
		if err := add(p.name, content); err != nil {
			return err
		}
	}
	var manifest bytes.Buffer
	if err := printJSON(&manifest, m); err != nil {
		return err
	}
	if err := add("manifest.json", manifest.Bytes()); err != nil {
		return err
	}
	return errors.Join(t.Close(), z.Close())
}

// collect reads a part within its bounds.
func (p part) collect(ctx context.Context) ([]byte, bundleSection) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(p.timeout, sectionTimeout))
	defer cancel()
	began := time.Now()
	content, err := p.read(ctx)
	said := bundleSection{Name: p.name}
	if over := len(content) - cmp.Or(p.most, sectionMax); over > 0 {
		said.Dropped = over
		content = p.cut(content)
	} else {
		content = scrub(content)
	}
	said.Bytes, said.TookMs = len(content), time.Since(began).Milliseconds()
	if err != nil {
		said.Error = string(scrub([]byte(err.Error())))
	}
	return content, said
}

// cut is about as much as may be kept of what is longer, without secrets.
func (p part) cut(content []byte) []byte {
	raw := cmp.Or(p.most, sectionMax) + secretMax
	if p.tail {
		kept := scrub(content[max(0, len(content)-raw):])
		return kept[min(len(kept), secretMax):]
	}
	kept := scrub(content[:min(len(content), raw)])
	return kept[:max(0, len(kept)-secretMax)]
}

func printManifest(p *printer, m bundleManifest) {
	bytes, missing := 0, 0
	t := p.table("SECTION", "BYTES", "PROBLEM")
	for _, s := range m.Sections {
		bytes += s.Bytes
		problem := s.Error
		if s.Dropped > 0 {
			problem = strings.TrimPrefix(problem+fmt.Sprintf("; %d bytes left out", s.Dropped), "; ")
		}
		if problem == "" && !p.wide {
			continue
		}
		if problem != "" {
			missing++
		}
		t.row(s.Name, s.Bytes, problem)
	}
	if len(t.rows) > 1 {
		t.end()
		p.printf("\n")
	}
	p.printf("%s: %s, %d of them incomplete or missing\n", m.File, plural(len(m.Sections), "section"), missing)
	p.printf("look through it before you pass it on: addresses and names of nodes are in it\n")
}

// jsonPart is a part that is a value.
func jsonPart(name string, value func(ctx context.Context) (any, error)) part {
	return part{name: name, read: func(ctx context.Context) ([]byte, error) {
		v, err := value(ctx)
		if err != nil {
			return nil, err
		}
		b, err := json.MarshalIndent(v, "", "  ")
		return append(b, '\n'), err
	}}
}
