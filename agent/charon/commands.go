package charon

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/strongswan/govici/vici"
)

// asynchronous is the VICI timeout that makes charon answer as soon as it has
// queued the work.
const asynchronous = "-1"

// Version is what charon says about itself and its host.
type Version struct {
	Daemon  string // "charon", or "charon-systemd"
	Version string // "5.9.8"
	System  string // "Linux"
	Release string // of the kernel
	Machine string // "x86_64"
}

// Version asks charon for its version.
func (c *Client) Version(ctx context.Context) (v Version, err error) {
	err = c.do(ctx, func(x *exchange) error {
		v, err = x.version()
		return err
	})
	return v, err
}

func (x *exchange) version() (Version, error) {
	m, err := x.command("version", nil)
	if err != nil {
		return Version{}, err
	}
	return Version{
		Daemon:  text(m, "daemon"),
		Version: text(m, "version"),
		System:  text(m, "sysname"),
		Release: text(m, "release"),
		Machine: text(m, "machine"),
	}, nil
}

// Plugins lists the plugins charon has loaded. "kernel-libipsec" among them
// means that ESP is done in user space.
func (c *Client) Plugins(ctx context.Context) (plugins []string, err error) {
	err = c.do(ctx, func(x *exchange) error {
		m, err := x.command("stats", nil)
		if err != nil {
			return err
		}
		plugins = texts(m, "plugins")
		return nil
	})
	return plugins, err
}

// Load gives charon a connection, or replaces the one of that name. An IKE_SA
// that exists already is left as it is: VICI cannot move an SA to another
// endpoint, so Initiate when the peer's changed.
func (c *Client) Load(ctx context.Context, conn Connection) error {
	m, err := conn.message()
	if err != nil {
		return err
	}
	return c.simple(ctx, "load-conn", m)
}

// ConnectionNames are those of the connections that charon has, whoever loaded them.
func (c *Client) ConnectionNames(ctx context.Context) (names []string, err error) {
	err = c.do(ctx, func(x *exchange) error {
		names, err = x.connectionNames()
		return err
	})
	return names, err
}

func (x *exchange) connectionNames() ([]string, error) {
	m, err := x.command("get-conns", nil)
	if err != nil {
		return nil, err
	}
	return texts(m, "conns"), nil
}

// Unload removes a connection. Its SAs stay: Terminate them. ErrNotFound when
// charon has no connection of that name.
func (c *Client) Unload(ctx context.Context, name string) error {
	args, err := section{{"name", name}}.message()
	if err != nil {
		return err
	}
	return c.do(ctx, func(x *exchange) error {
		// charon's refusal differs from others only in its text, so look first.
		loaded, err := x.connectionNames()
		if err != nil {
			return err
		}
		if !slices.Contains(loaded, name) {
			return fmt.Errorf("unload connection %q: %w", name, ErrNotFound)
		}
		_, err = x.command("unload-conn", args)
		return err
	})
}

// Initiate asks charon to set up a CHILD_SA and, if there is none for the
// connection yet, the IKE_SA. It returns when charon has queued the work; how
// it went, events and SAs tell. Children of one connection may be initiated
// right after each other: charon sends one IKE_SA_INIT and queues the rest. A
// CHILD_SA that is installed already is not doubled.
//
// If the connection was loaded with another endpoint meanwhile, a new IKE_SA
// is made. unique=replace then removes the old one on both sides: at once when
// the initiator's address changed, but ten seconds later when only the
// responder's did, which charon takes for a reauthentication. TerminateSA or
// Destroy the old one where that matters.
func (c *Client) Initiate(ctx context.Context, ike, child string) error {
	m, err := section{{"ike", ike}, {"child", child}, {"timeout", asynchronous}}.message()
	if err != nil {
		return err
	}
	return c.simple(ctx, "initiate", m)
}

// InitiateSA asks charon to set up an IKE_SA without a CHILD_SA (RFC 6023), for
// Initiate to put some into later. The peer's charon has to permit it, as it does
// unless it is told otherwise.
func (c *Client) InitiateSA(ctx context.Context, ike string) error {
	m, err := section{{"ike", ike}, {"timeout", asynchronous}}.message()
	if err != nil {
		return err
	}
	return c.simple(ctx, "initiate", m)
}

// Terminate closes all IKE_SAs of a connection with their CHILD_SAs. It
// returns when charon has queued the work. ErrNotFound when there are none.
// When the peer does not answer, the SAs linger in StateDeleting for charon's
// retransmissions, about three minutes by default; see Destroy.
func (c *Client) Terminate(ctx context.Context, ike string) error {
	return c.terminate(ctx, fmt.Sprintf("terminate connection %q", ike), section{{"ike", ike}})
}

// TerminateSA closes one IKE_SA with its CHILD_SAs, as Terminate does.
func (c *Client) TerminateSA(ctx context.Context, id IKEID) error {
	return c.terminate(ctx, fmt.Sprintf("terminate IKE_SA #%d", id), section{{"ike-id", id}})
}

// Destroy removes one IKE_SA with its CHILD_SAs at once: the peer is told, but
// its answer is not waited for. It is for paths that are dead.
func (c *Client) Destroy(ctx context.Context, id IKEID) error {
	return c.terminate(ctx, fmt.Sprintf("destroy IKE_SA #%d", id), section{{"ike-id", id}, {"force", "yes"}})
}

// TerminateChild closes one CHILD_SA; its IKE_SA and the others of it stay. It
// returns when charon has queued the work. The peer's end is gone before ours.
func (c *Client) TerminateChild(ctx context.Context, id ChildID) error {
	return c.terminate(ctx, fmt.Sprintf("terminate CHILD_SA #%d", id), section{{"child-id", id}})
}

// Rekey gives one IKE_SA new keys (RFC 7296 section 2.18). It returns when charon
// has queued the work.
func (c *Client) Rekey(ctx context.Context, id IKEID) error {
	return c.withMatches(ctx, "rekey", fmt.Sprintf("rekey IKE_SA #%d", id), section{{"ike-id", id}})
}

// RekeyChild gives one CHILD_SA new keys. It returns when charon has queued the
// work.
func (c *Client) RekeyChild(ctx context.Context, id ChildID) error {
	return c.withMatches(ctx, "rekey", fmt.Sprintf("rekey CHILD_SA #%d", id), section{{"child-id", id}})
}

func (c *Client) terminate(ctx context.Context, what string, args section) error {
	return c.withMatches(ctx, "terminate", what, append(args, entry{"timeout", asynchronous}))
}

// withMatches runs a command that may find nothing to work on: ErrNotFound.
func (c *Client) withMatches(ctx context.Context, command, what string, args section) error {
	m, err := args.message()
	if err != nil {
		return err
	}
	return c.do(ctx, func(x *exchange) error {
		answer, err := x.command(command, m)
		if errors.Is(err, ErrRefused) && text(answer, "matches") == "0" {
			return fmt.Errorf("%s: %w", what, ErrNotFound)
		}
		return err
	})
}

// SAs lists the IKE_SAs of a connection with their CHILD_SAs, or all when ike
// is empty. One connection can have several at a time, e.g. while one replaces
// another.
func (c *Client) SAs(ctx context.Context, ike string) (sas []SA, err error) {
	var filter section
	if ike != "" {
		filter = section{{"ike", ike}}
	}
	err = c.list(ctx, "list-sas", "list-sa", filter, func(name string, m *vici.Message) error {
		sa, err := parseSA(name, m)
		sas = append(sas, sa)
		return err
	})
	return sas, err
}

// Connections lists all connections charon knows, whoever loaded them.
func (c *Client) Connections(ctx context.Context) (infos []ConnectionInfo, err error) {
	err = c.list(ctx, "list-conns", "list-conn", nil, func(name string, m *vici.Message) error {
		infos = append(infos, parseConnection(name, m))
		return nil
	})
	return infos, err
}

// list runs a streaming command; every event holds one named section.
func (c *Client) list(ctx context.Context, command, event string, args section, visit func(string, *vici.Message) error) error {
	m, err := args.message()
	if err != nil {
		return err
	}
	var events []*vici.Message
	err = c.do(ctx, func(x *exchange) error {
		events, err = x.stream(command, event, m)
		return err
	})
	if err != nil {
		return err
	}
	for _, e := range events {
		for name, item := range within(e) {
			if err := visit(name, item); err != nil {
				return fmt.Errorf("%s: %w", command, err)
			}
		}
	}
	return nil
}

func (c *Client) simple(ctx context.Context, command string, args *vici.Message) error {
	return c.do(ctx, func(x *exchange) error {
		_, err := x.command(command, args)
		return err
	})
}
