package agent

import (
	"errors"
	"log/slog"
	"slices"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/punch/rewrite"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// errNoRewrite: nobody has opened the table.
var errNoRewrite = errors.New("port rewriting is not set up")

// rewriteTable is what the agent needs of a *rewrite.Table.
type rewriteTable interface {
	Sweep(keep func(owner string) bool) error
	Set(owner string, f rewrite.Flow, port uint16) error
	Remove(owner string) error
	Rules() ([]rewrite.Rule, error)
	Close() error
}

// rewrites are the source ports that this host rewrites: at most one rule for
// each connection, whose name is the rule's owner. Like the tunnels that run
// through them, the rules outlive the agent. Without nftables all methods do
// nothing. They may be called from any goroutine.
type rewrites struct {
	table rewriteTable // nil without nftables
	why   error        // then: why not
	log   *slog.Logger
}

// openRewrites opens the table and removes what a killed agent has left behind.
func openRewrites(log *slog.Logger, ours func(connection string) bool) rewrites {
	table, err := rewrite.Open(log)
	if err != nil {
		log.Warn("ports of a symmetric NAT cannot be searched for", "err", err)
		return rewrites{why: err, log: log}
	}
	if err := table.Sweep(ours); err != nil {
		log.Error("old port rewrites not removed", "err", err)
	}
	return rewrites{table: table, log: log}
}

func (w rewrites) close() {
	if w.table == nil {
		return
	}
	if err := w.table.Close(); err != nil {
		w.log.Warn("port rewrites not closed", "err", err)
	}
}

// unavailable says why this node cannot open ports for a search, empty when it
// can.
func (w rewrites) unavailable() string {
	switch {
	case w.table != nil:
		return ""
	case w.why != nil:
		return wire.Clip(w.why.Error())
	default:
		return errNoRewrite.Error()
	}
}

// remove removes a connection's rule.
func (w rewrites) remove(connection string) {
	if w.table == nil {
		return
	}
	if err := w.table.Remove(connection); err != nil {
		w.log.Error("port rewrite not removed", "connection", connection, "err", err)
	}
}

// has reports whether a connection has a rule.
func (w rewrites) has(connection string) bool {
	if w.table == nil {
		return false
	}
	rules, err := w.table.Rules()
	if err != nil {
		w.log.Error("port rewrites not listed", "err", err)
	}
	return slices.ContainsFunc(rules, func(r rewrite.Rule) bool { return r.Owner == connection })
}

// keepOnly removes the rules that keep does not want.
func (w rewrites) keepOnly(keep func(rewrite.Rule) bool) {
	if w.table == nil {
		return
	}
	rules, err := w.table.Rules()
	if err != nil {
		w.log.Error("port rewrites not listed", "err", err)
	}
	for _, rule := range rules {
		if !keep(rule) {
			w.log.Info("port rewrite removed: no tunnel runs through it", "connection", rule.Owner, "remote", rule.Flow.Peer, "port", rule.Port)
			w.remove(rule.Owner)
		}
	}
}

// settle removes a connection's rule unless the path that its tunnel has taken
// runs through it.
func (w rewrites) settle(connection string, path wire.Path) {
	w.keepOnly(func(r rewrite.Rule) bool { return r.Owner != connection || carriesPath(r, path) })
}

func carriesPath(r rewrite.Rule, path wire.Path) bool {
	return r.Flow.Peer == path.Remote && r.Flow.Local.Addr() == path.Local.Addr()
}

// flow is the rewriting of one connection's flow.
func (w rewrites) flow(connection string, f rewrite.Flow) (punch.Rewriter, error) {
	if w.table == nil {
		return nil, errors.New(w.unavailable())
	}
	return flowRewriter{w.table, connection, f}, nil
}

type flowRewriter struct {
	table rewriteTable
	owner string
	flow  rewrite.Flow
}

func (f flowRewriter) Set(port uint16) error { return f.table.Set(f.owner, f.flow, port) }
