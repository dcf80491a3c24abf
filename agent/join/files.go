package join

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"text/template"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// write replaces a file, and says what keeps it from being written.
func write(path string, b []byte, mode fs.FileMode) error {
	return explainDisk(path, pki.WriteFile(path, b, mode))
}

// writable makes a directory if it is not there, and tries it.
func writable(dir string, mode fs.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return explainDisk(dir, err)
	}
	f, err := os.CreateTemp(dir, ".bodkin-join-*")
	if err != nil {
		return explainDisk(dir, err)
	}
	return explainDisk(dir, errors.Join(f.Close(), os.Remove(f.Name())))
}

// explainDisk says what to do about a file that cannot be written.
func explainDisk(path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%s is on a file system that is read-only: make it writable, or use --dir and --state-dir", path)
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return fmt.Errorf("%s cannot be written by this user: run it as root: sudo bodkin join …", path)
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("%s cannot be written: the disk is full", path)
	}
	return fmt.Errorf("%s cannot be written: %w", path, err)
}

// configuration is a new node's agent.yaml: what the join decided, and nothing
// that has a default.
var configuration = template.Must(template.New("agent.yaml").Parse(`# Written by bodkin join. What is not here has its default; docs/configuration.md
# explains all keys, and /usr/share/doc/bodkin/examples/agent-edge.yaml has them.

# Where the rendezvous is.
rendezvous: {{printf "https://%s" .Host | printf "%q"}}
{{if not .DefaultDir}}
# What this node proves itself with, and whom it believes.
certificate: {{printf "%q" .Files.Certificate}}
key: {{printf "%q" .Files.Key}}
ca: {{printf "%q" .Files.CA}}
{{end}}
# This node; its name is in its certificate.
endpoint:
  type: {{.Type}}
  # What is behind it: its pods.
  subnets: [{{.Subnets}}]
  # Its own addresses, if pods of other nodes are to reach them: [192.0.2.10/32]
  nodeSubnets: []
{{- if .Public}}
  # Where edges reach its strongSwan.
  publicAddresses: [{{.Public}}]
{{- if .PublicPort}}
  port: {{.PublicPort}}
{{- end}}
{{- end}}
{{range .Paths}}
{{.}}{{end}}
`))

// text is the configuration as a new file has it.
func (j *joining) configText() ([]byte, error) {
	defaults := agent.DefaultConfig()
	var paths []string
	for _, p := range []struct{ key, is, standard string }{
		{"viciSocket", j.VICISocket, defaults.VICISocket}, {"socket", j.Socket, defaults.Socket}, {"stateDir", j.StateDir, defaults.StateDir},
	} {
		if p.is != p.standard {
			paths = append(paths, fmt.Sprintf("%s: %q", p.key, p.is))
		}
	}
	var b bytes.Buffer
	err := configuration.Execute(&b, map[string]any{
		"Host": j.host, "Files": j.files, "DefaultDir": j.files.Certificate == defaults.Certificate, "Type": j.Type,
		"Subnets": strings.Join(texts(j.issued.Subnets), ", "), "Public": quoted(j.publicAddresses()), "PublicPort": j.PublicPort, "Paths": paths,
	})
	return b.Bytes(), err
}

func (j *joining) publicAddresses() []string {
	if j.Type != wire.Connector {
		return nil
	}
	return j.PublicAddresses
}

// quoted is a list in YAML: an IPv6 address has colons.
func quoted(items []string) string {
	out := make([]string, len(items))
	for i, s := range items {
		out[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(out, ", ")
}

// writeConfiguration writes agent.yaml unless there is one, which was checked
// before.
func (j *joining) writeConfiguration(context.Context) (string, error) {
	if j.found.config != nil {
		return j.files.Config + " kept", nil
	}
	text, err := j.configText()
	if err != nil {
		return "", err
	}
	if err := write(j.files.Config, text, 0o644); err != nil {
		return "", err
	}
	return j.files.Config + " written", nil
}

// writeFiles writes the certificates, the node's own last: it says that a join is
// complete.
func (j *joining) writeFiles(context.Context) (string, error) {
	if err := write(j.files.CA, pki.EncodeCertificate(j.ca.Raw), 0o644); err != nil {
		return "", err
	}
	if err := write(j.files.Certificate, []byte(j.issued.Certificate), 0o644); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s and %s written; the agent gives them to strongSwan itself", j.files.CA, j.files.Certificate), nil
}
