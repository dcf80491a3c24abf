// Package join makes a machine a node: with a token it fetches a certificate from
// the rendezvous and writes what an agent needs.
//
//	token → machine → rendezvous → key → certificate → configuration → files → service → online
//
// Each step leaves the machine as it was or done with that step, and finds what an
// earlier join has left: one that was cut short anywhere goes on when it is run
// again. The node's certificate is written last; where it is, all else is.
package join

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Options are what somebody wants a machine to become.
type Options struct {
	Rendezvous string // https://host:7443
	Token      string
	// Name and Subnets may be empty: the token's then.
	Name            wire.NodeName
	Subnets         []netip.Prefix
	Type            wire.EndpointType
	PublicAddresses []string // of a connector: where edges reach its charon
	PublicPort      uint16   // of a connector, 0 for charon's own

	Dir        string // of agent.yaml, node.key, node.crt and ca.crt
	StateDir   string
	VICISocket string
	Socket     string // the agent's

	// Service starts the agent, nil leaves that to somebody else.
	Service Service
	// Wait is how long the node may need to be online, 0 does not wait.
	Wait time.Duration
}

// Service is what keeps an agent running.
type Service interface {
	// Start has the agent run now and after each boot, and says what was done. One
	// that runs already takes up what was written.
	Start(ctx context.Context) (done string, err error)
}

// Step names a step.
type Step string

// Steps, in their order.
const (
	StepToken         Step = "token"
	StepMachine       Step = "machine"
	StepRendezvous    Step = "rendezvous"
	StepKey           Step = "key"
	StepCertificate   Step = "certificate"
	StepConfiguration Step = "configuration"
	StepFiles         Step = "files"
	StepService       Step = "service"
	StepOnline        Step = "online"
)

// Mark says what a line is about.
type Mark string

// Marks.
const (
	Done    Mark = "done"
	Warning Mark = "warning" // the step is done, and something should be mended
	Waiting Mark = "waiting"
)

// Told is a line about a step.
type Told struct {
	Step Step
	Mark Mark
	Text string
}

// Result is what a machine became.
type Result struct {
	Name    wire.NodeName
	Pending bool
	// Config is the path of agent.yaml.
	Config string
	// Status is the agent's when the node was online, nil when nobody waited.
	Status *agent.Status
}

// Files are where a node's files are.
type Files struct{ Config, Key, Certificate, CA string }

// FilesIn are a node's files in a directory.
func FilesIn(dir string) Files {
	in := func(name string) string { return filepath.Join(dir, name) }
	return Files{Config: in("agent.yaml"), Key: in("node.key"), Certificate: in("node.crt"), CA: in("ca.crt")}
}

// joining is a join under way. It is one goroutine's.
type joining struct {
	Options
	files Files
	tell  func(Told)

	token wire.JoinToken
	found found
	host  string // of the rendezvous, with its port
	ca    *x509.Certificate
	key   crypto.Signer
	// issued is what the rendezvous answered.
	issued  wire.JoinAnswer
	pending bool
	status  *agent.Status
}

// steps are all that is to be done. Each says what it did.
var steps = []struct {
	step Step
	do   func(*joining, context.Context) (string, error)
}{
	{StepToken, (*joining).readToken},
	{StepMachine, (*joining).lookAtMachine},
	{StepRendezvous, (*joining).meetRendezvous},
	{StepKey, (*joining).haveKey},
	{StepCertificate, (*joining).getCertificate},
	{StepConfiguration, (*joining).writeConfiguration},
	{StepFiles, (*joining).writeFiles},
	{StepService, (*joining).startService},
	{StepOnline, (*joining).waitOnline},
}

// Run joins, and calls tell for each thing it did, from its own goroutine. Errors
// name the step's trouble in one line; a join that ended with one can be run
// again. A cancelled ctx ends it between steps, or within one that waits.
func Run(ctx context.Context, o Options, tell func(Told)) (Result, error) {
	j := &joining{Options: o, files: FilesIn(o.Dir), tell: tell}
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return Result{}, fmt.Errorf("stopped before the %s: run the same command again to go on", s.step)
		}
		done, err := s.do(j, ctx)
		if err != nil {
			return Result{}, err
		}
		if done != "" {
			tell(Told{s.step, Done, done})
		}
	}
	return Result{Name: j.issued.Name, Pending: j.pending, Config: j.files.Config, Status: j.status}, nil
}

func (j *joining) warn(s Step, format string, args ...any) {
	j.tell(Told{s, Warning, fmt.Sprintf(format, args...)})
}

func (j *joining) readToken(context.Context) (_ string, err error) {
	if j.token, err = wire.ParseJoinToken(j.Token); err != nil {
		return "", err
	}
	if j.host, err = agent.ParseRendezvous(j.Rendezvous); err != nil {
		return "", fmt.Errorf("%w: %w", agent.ErrConfig, err)
	}
	if j.Name != "" {
		if err := j.Name.Validate(); err != nil {
			return "", fmt.Errorf("%w: %w", agent.ErrConfig, err)
		}
	}
	if j.Type == wire.Connector && len(j.PublicAddresses) == 0 {
		return "", fmt.Errorf("%w: a connector needs an address that edges can reach: --public-address", agent.ErrConfig)
	}
	return fmt.Sprintf("%s, for the rendezvous whose CA has the hash %x…", j.token.TokenID(), j.token.CAHash[:4]), nil
}

// lookAtMachine finds out what would fail later, before the token is used.
func (j *joining) lookAtMachine(ctx context.Context) (string, error) {
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{{j.Dir, 0o755}, {j.StateDir, 0o700}} {
		if err := writable(dir.path, dir.mode); err != nil {
			return "", err
		}
	}
	var err error
	if j.found, err = look(j.files); err != nil {
		return "", err
	}
	if err := j.found.mayBecome(j.Options, j.host, j.files); err != nil {
		return "", err
	}
	if err := answers(ctx, j.VICISocket); err != nil {
		j.warn(StepMachine, "strongSwan's charon does not answer on %s (%v): install it (apt install strongswan-charon strongswan-swanctl) "+
			"and start it; the node has no tunnels without", j.VICISocket, err)
	}
	return fmt.Sprintf("%s and %s can be written", j.Dir, j.StateDir), nil
}

// answers is an error unless somebody listens on a unix socket.
func answers(ctx context.Context, socket string) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	if err != nil {
		return err
	}
	return c.Close()
}
