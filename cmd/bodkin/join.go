package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/agent/join"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

const (
	// joinWait is how long a new node may need to be online: some seconds, and an
	// operator who is to approve it a little more.
	joinWait = 2 * time.Minute
	// maxToken bounds what is read as a token, in bytes.
	maxToken = 4096
)

// joinFlags are those of `bodkin join`.
type joinFlags struct {
	join.Options
	tokenFile, name, kind string
	subnets               []string
	noService             bool
}

func newJoin() *cobra.Command {
	var f joinFlags
	cmd := &cobra.Command{
		Use:   "join URL",
		Short: "Make this machine a node of the rendezvous at URL, with a token",
		Long: "Join makes a key on this machine, has the rendezvous sign it, writes the agent's configuration\n" +
			"and starts the agent. The token comes from `bodkin token create` on the rendezvous; it holds the\n" +
			"hash of its CA, so that nobody in between can answer in its place.\n\n" +
			"Each step is told. A join that was cut short goes on when it is run again; what stands already is\n" +
			"kept, an agent.yaml above all. strongSwan needs no configuration: the agent gives it key and\n" +
			"certificates itself.",
		Example: "  sudo bodkin join https://connector.example:7443 --token bodkin-join-…\n" +
			"  ssh connector bodkin token create -o json | jq -r .token | sudo bodkin join https://connector.example:7443 --token -\n" +
			"  sudo bodkin join https://198.51.100.1:7443 --token-file token --type connector --public-address 198.51.100.1",
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			o, err := f.options(cmd, a[0])
			if err != nil {
				return usageError{err}
			}
			return runJoin(cmd, o)
		},
	}
	f.register(cmd)
	return cmd
}

func (f *joinFlags) register(cmd *cobra.Command) {
	defaults, flags := agent.DefaultConfig(), cmd.Flags()
	flags.StringVar(&f.Token, "token", "", `the join token; "-" reads it from standard input, where no process list shows it`)
	flags.StringVar(&f.tokenFile, "token-file", "", "file with the join token")
	flags.StringVar(&f.name, "name", "", "the node's name, such as beijing.edge1 (the token's)")
	flags.StringSliceVar(&f.subnets, "subnets", nil, "what is behind this node, such as 10.233.66.0/24 (the token's)")
	flags.StringVar(&f.kind, "type", "edge", "edge or connector")
	flags.StringSliceVar(&f.PublicAddresses, "public-address", nil, "of a connector: where edges reach its strongSwan")
	flags.Uint16Var(&f.PublicPort, "public-port", 0, "of a connector: the UDP port there (4500)")
	flags.StringVar(&f.Dir, "dir", "/etc/bodkin", "directory of agent.yaml, key and certificates")
	flags.StringVar(&f.StateDir, "state-dir", defaults.StateDir, "the agent's state directory")
	flags.StringVar(&f.VICISocket, "vici", defaults.VICISocket, "charon's control socket")
	flags.StringVar(&f.Socket, "socket", defaults.Socket, "the agent's unix socket")
	flags.BoolVar(&f.noService, "no-service", false, "do not start the agent, nor wait for it unless --timeout is given")
	flags.DurationVar(&f.Wait, "timeout", joinWait, "how long to wait until the node is online, 0 for not at all")
	completeFlag(cmd, "type", []string{"edge", "connector"})
}

// options are what the flags come to.
func (f *joinFlags) options(cmd *cobra.Command, url string) (join.Options, error) {
	o := f.Options
	o.Rendezvous, o.Name = url, wire.NodeName(f.name)
	switch f.kind {
	case "edge":
		o.Type = wire.Edge
	case "connector":
		o.Type = wire.Connector
	default:
		return o, fmt.Errorf("--type %q: want edge or connector", f.kind)
	}
	for _, text := range f.subnets {
		p, err := netip.ParsePrefix(text)
		if err != nil || p.Masked() != p {
			return o, fmt.Errorf("--subnets: %q is no CIDR: want something like 10.233.66.0/24", text)
		}
		o.Subnets = append(o.Subnets, p)
	}
	if f.noService && !cmd.Flags().Changed("timeout") {
		o.Wait = 0
	}
	if !f.noService && join.SystemdRuns() {
		o.Service = join.Systemd{}
	}
	// The agent need not run where the join did.
	for _, path := range []*string{&o.Dir, &o.StateDir, &o.VICISocket, &o.Socket} {
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return o, err
		}
		*path = absolute
	}
	var err error
	o.Token, err = f.readToken(cmd.InOrStdin())
	return o, err
}

func (f *joinFlags) readToken(stdin io.Reader) (string, error) {
	switch {
	case (f.Token == "") == (f.tokenFile == ""):
		return "", errors.New("want either --token or --token-file: `bodkin token create` on the rendezvous makes one")
	case f.tokenFile != "":
		b, err := os.ReadFile(f.tokenFile)
		if err != nil {
			return "", fmt.Errorf("--token-file: %w", err)
		}
		return string(b), nil
	case f.Token == "-":
		b, err := io.ReadAll(io.LimitReader(stdin, maxToken))
		if err != nil {
			return "", fmt.Errorf("--token -: %w", err)
		}
		return string(b), nil
	}
	return f.Token, nil
}

// runJoin joins and tells each step as it is done.
func runJoin(cmd *cobra.Command, o join.Options) error {
	p := newPrinter(cmd)
	result, err := join.Run(cmd.Context(), o, func(t join.Told) {
		p.printf("%s  %-13s  %s\n", joinMark(p, t.Mark), t.Step, t.Text)
		_ = p.flush() // a join does not end because nobody reads on
	})
	if err != nil {
		return joinError(err)
	}
	p.printf("\n%s\n", afterJoin(o.Type, result))
	return p.flush()
}

// afterJoin is what to do next.
func afterJoin(kind wire.EndpointType, r join.Result) string {
	switch {
	case r.Status == nil:
		return "Next, start the agent: bodkin agent --config " + r.Config
	case len(r.Status.Tunnels) > 0:
		return "Next, see its tunnels: bodkin status"
	case kind == wire.Connector:
		return "Next, let edges join, each of which gets a tunnel to it: bodkin token create, on the rendezvous\nThen look here: bodkin status"
	}
	return fmt.Sprintf("Next, say on the rendezvous who %s may talk to: bodkin community apply --help\nThen look here: bodkin status", r.Name)
}

// joinMark is a mark that says without colour what it says with it.
func joinMark(p *printer, m join.Mark) string {
	switch m {
	case join.Warning:
		return p.styled("!", warn)
	case join.Waiting:
		return p.styled("…", faint)
	}
	return p.styled("✓", good)
}

// joinError gives an error of a join its exit code.
func joinError(err error) error {
	switch _, refused := errors.AsType[*agent.RefusedError](err); {
	case refused, errors.Is(err, join.ErrOtherCA):
		return refusedError{err}
	case errors.Is(err, agent.ErrUnreachable):
		return unreachableError{err}
	case errors.Is(err, wire.ErrJoinToken), errors.Is(err, agent.ErrConfig):
		return usageError{err}
	}
	return err
}
