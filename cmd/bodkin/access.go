package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous"
	"github.com/bodkin-net/bodkin/rendezvous/access"
)

func newAccess() *cobra.Command {
	var server rendezvousFlags
	cmd := &cobra.Command{
		Use:   "access",
		Short: "Say who may look at the rendezvous, and who may change it",
		Long: "Credentials for the status page, the API and these commands, from other machines than the\n" +
			"rendezvous' own: tokens, and client certificates. A viewer reads everything but secrets, an admin\n" +
			"changes what can be changed. On the rendezvous itself its unix socket needs none.",
		Example: "  bodkin access create grafana --role viewer\n" +
			"  bodkin access list",
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	server.register(cmd)
	cmd.AddCommand(newAccessCreate(&server), newAccessList(&server), newAccessDelete(&server), newAccessCertificate(&server))
	return cmd
}

var roles = []string{string(access.Viewer), string(access.Admin)}

// roleFlag adds --role, which has to be given.
func roleFlag(cmd *cobra.Command, role *string) {
	cmd.Flags().StringVar(role, "role", "", "viewer or admin")
	completeFlag(cmd, "role", roles)
}

// checkRole is the role that was given.
func checkRole(role string) (access.Role, error) {
	if r := access.Role(role); r == access.Viewer || r == access.Admin {
		return r, nil
	}
	return "", usageError{fmt.Errorf("--role %q: want %s", role, orList(roles))}
}

func newAccessCreate(server *rendezvousFlags) *cobra.Command {
	var role string
	var ttl time.Duration
	var o output
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a credential and print its token, this once",
		Example: "  bodkin access create grafana --role viewer\n" +
			"  bodkin access create anna --role admin --ttl 720h\n" +
			"  bodkin access create grafana --role viewer -o json | jq -r .token",
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			spec := rendezvous.NewCredential{Name: names[0], TTLSeconds: int64(ttl / time.Second)}
			var err error
			if spec.Role, err = checkRole(role); err != nil {
				return err
			}
			if ttl < 0 || ttl%time.Second != 0 {
				return usageError{fmt.Errorf("--ttl %s: want whole seconds, 0 for ever", ttl)}
			}
			c, err := server.client()
			if err != nil {
				return err
			}
			var made rendezvous.CreatedCredential
			if err := c.do(cmd.Context(), http.MethodPost, "/api/v1/access", nil, spec, &made); err != nil {
				return err
			}
			return o.print(cmd, made, func(p *printer) { printCredential(p, made) })
		},
	}
	roleFlag(cmd, &role)
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "how long it is good (for ever)")
	o.register(cmd)
	return cmd
}

func printCredential(p *printer, made rendezvous.CreatedCredential) {
	p.printf("%s\n\n", p.styled(made.Token, bold))
	p.printf("For %s, role %s, %s. It is shown this once: keep it. Use it\n", made.Name, made.Role, until(made.Expires))
	p.printf("  to log in to the status page\n")
	p.printf("  in a file, for bodkin --server https://HOST:7480 --token-file FILE, or in $%s\n", envToken)
	p.printf("  as bearer token, or as password with any user name\n")
}

func until(t time.Time) string {
	if t.IsZero() {
		return "without end"
	}
	return "until " + t.Local().Format(time.DateTime)
}

func newAccessList(server *rendezvousFlags) *cobra.Command {
	return listing(server, "/api/v1/access", func(p *printer, list rendezvous.CredentialList) { printCredentials(p, list.Credentials) }, &cobra.Command{
		Use:     "list",
		Short:   "List the credentials, without their tokens",
		Example: "  bodkin access list\n  bodkin access list -o json | jq -r '.credentials[].name'",
	})
}

func printCredentials(p *printer, credentials []rendezvous.CredentialView) {
	if len(credentials) == 0 {
		p.printf("no credentials: bodkin access create NAME --role viewer\n")
		return
	}
	t := p.table("NAME", "ROLE", "STATE", "EXPIRES", "CREATED", "+BY")
	for _, c := range credentials {
		state, expires := cell{"good", good}, "never"
		if !c.Expires.IsZero() {
			expires = c.Expires.Local().Format(time.DateTime)
			if !p.now.Before(c.Expires) {
				state = cell{"expired", faint}
			}
		}
		t.row(c.Name, string(c.Role), state, expires, c.Created.Local().Format(time.DateTime), c.By)
	}
	t.end()
}

func newAccessDelete(server *rendezvousFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "delete NAME",
		Short:   "Delete a credential: its logins end, and certificates of that name are revoked",
		Example: "  bodkin access delete anna",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			c, err := server.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodDelete, "/api/v1/access"+segment(names[0]), nil, nil, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "access of %s deleted\n", names[0])
			return nil
		},
	}
}

func newAccessCertificate(server *rendezvousFlags) *cobra.Command {
	var role, dir string
	var o output
	cmd := &cobra.Command{
		Use:   "certificate NAME",
		Short: "Make a key here and have the rendezvous sign a client certificate for it",
		Long: "Writes NAME.key and NAME.crt, for --key and --cert of the commands with --server, and for\n" +
			"browsers. The key never leaves this machine. With a CA that the rendezvous has no key of, have\n" +
			"that CA issue a certificate with the organizational unit bodkin:viewer or bodkin:admin.",
		Example: "  bodkin access certificate anna --role admin --dir ~/.bodkin\n" +
			"  openssl pkcs12 -export -in anna.crt -inkey anna.key -out anna.p12   # for a browser",
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			r, err := checkRole(role)
			if err != nil {
				return err
			}
			c, err := server.client()
			if err != nil {
				return err
			}
			made, err := certify(cmd, c, names[0], r, dir)
			if err != nil {
				return err
			}
			return o.print(cmd, made, func(p *printer) {
				p.printf("%s and %s: role %s, %s\n", made.Certificate, made.Key, made.Role, until(made.Expires))
			})
		},
	}
	roleFlag(cmd, &role)
	cmd.Flags().StringVar(&dir, "dir", ".", "where to write the two files")
	o.register(cmd)
	return cmd
}

// operatorFiles is what `access certificate` has made.
type operatorFiles struct {
	Name        string      `json:"name"`
	Role        access.Role `json:"role"`
	Certificate string      `json:"certificate"` // path
	Key         string      `json:"key"`         // path
	Expires     time.Time   `json:"expires"`
}

// certify makes a key, has it certified and writes both. A file that is there is
// left alone: it may be somebody's only key.
func certify(cmd *cobra.Command, c *client, name string, role access.Role, dir string) (operatorFiles, error) {
	if filepath.Base(name) != name || name == "." || name == ".." {
		return operatorFiles{}, usageError{fmt.Errorf("%q is no name of a file: want letters, digits and . _ @ -", name)}
	}
	files := operatorFiles{Name: name, Role: role, Certificate: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
	for _, path := range []string{files.Certificate, files.Key} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return files, usageError{fmt.Errorf("%s is there already: move it away, or choose another --dir", path)}
		}
	}
	key, err := pki.NewKey()
	if err != nil {
		return files, err
	}
	text, err := pki.EncodeKey(key)
	if err != nil {
		return files, err
	}
	request, err := pki.EncodeRequest(key)
	if err != nil {
		return files, err
	}
	// Before the certificate: one without its key would be of no use to anybody.
	if err := pki.WriteFile(files.Key, text, 0o600); err != nil {
		return files, err
	}
	var made rendezvous.OperatorCertificate
	err = c.do(cmd.Context(), http.MethodPost, "/api/v1/access"+segment(name)+"/certificate", nil,
		rendezvous.CertificateRequest{Role: role, CSR: string(request)}, &made)
	if err == nil {
		err = pki.WriteFile(files.Certificate, []byte(made.Certificate), 0o644)
	}
	if err != nil {
		return files, errors.Join(err, os.Remove(files.Key))
	}
	files.Expires = made.Expires
	return files, nil
}
