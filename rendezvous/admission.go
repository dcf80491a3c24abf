package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/enrol"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// How records of admission take effect. They are written first and looked at
// again on the hub's goroutine, by whoever changed them and by each session that
// begins: whichever of the two comes later sees both.

// Claim implements enrol.Nodes.
func (h *hub) Claim(ctx context.Context, e wire.Endpoint) (known bool, wrong, err error) {
	err = h.call(ctx, func(time.Time) []action {
		known, wrong = h.coordinator.nodes[e.Name] != nil, h.coordinator.Admit(e)
		return nil
	})
	return known, wrong, err
}

// turnAway answers a node that is not let in before there is a session.
func (s *Server) turnAway(w http.ResponseWriter, r *http.Request, present enrol.Presented, err error) {
	if errors.Is(err, enrol.ErrPending) || errors.Is(err, enrol.ErrRevoked) {
		s.log.Info("node not let in", "node", present.Name, "from", sourceOf(r), "reason", err)
		_ = s.hub.call(r.Context(), func(now time.Time) []action {
			pending := errors.Is(err, enrol.ErrPending)
			if !pending && s.hub.details[present.Name] == nil {
				return nil // it was deleted: there is nothing to show
			}
			s.hub.turnedAway(present.Name, err)
			if !pending {
				return nil
			}
			if s.hub.detail(present.Name).Admission == "" {
				s.events.add(now, EventView{Kind: EventNode, Node: present.Name, State: string(store.Pending), Text: err.Error()})
			}
			return s.hub.stand(now, present.Name, s.standing(present.Name), "") // it may have been approved since
		})
	}
	s.answerJoin(w, nil, err)
}

// grant holds a hello against what was granted to its node, and its policy to
// what operators permit.
func (h *hub) grant(hello *wire.Hello, m store.Admission) error {
	if hello.Endpoint.Type == wire.Connector && !m.Connector && !h.mayConnect(hello.Endpoint.Name) {
		return fmt.Errorf("%w: endpoint.type: %s is no Connector to this rendezvous: use Edge, or name it in `connectors` there", errRefused, hello.Endpoint.Name)
	}
	if err := enrol.Bound(m, hello.Endpoint); err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	if strictness(nat.Policy(m.Punch)) > strictness(nat.Policy(hello.Punch)) {
		hello.Punch = wire.Policy(m.Punch)
	}
	return nil
}

// reconsider brings a node's session, pairs and view in line with its record.
// Again says why its session has to begin anew, if it does.
func (s *Server) reconsider(ctx context.Context, name wire.NodeName, again string) error {
	var failed error
	err := s.hub.call(ctx, func(now time.Time) []action {
		m, err := s.authority.Standing(string(name))
		if err != nil {
			failed = err
			return nil
		}
		return s.hub.stand(now, name, m.State, again)
	})
	return errors.Join(err, failed)
}

// stand lets a node stay, or ends its session and its pairs.
func (h *hub) stand(now time.Time, name wire.NodeName, state store.AdmissionState, again string) (actions []action) {
	h.detail(name).Admission = state
	if s := h.sessions[name]; s != nil {
		if _, err := h.admit(now, s.presented); err != nil {
			s.close(&wire.Bye{Reason: err.Error(), Final: true})
			actions = h.end(now, s)
		} else if again != "" {
			s.close(&wire.Bye{Reason: again})
		}
	}
	return append(actions, h.coordinator.Bar(now, name, state != store.Approved)...)
}

// end takes a session out of the table.
func (h *hub) end(now time.Time, s *session) []action {
	delete(h.sessions, s.node)
	d := h.detail(s.node)
	d.Online, d.Since, d.LastSeen = false, now, now
	h.recorder.node(*d)
	h.journal.online(now, s.node, false, "offline")
	return h.coordinator.Offline(now, s.node)
}

// distribute gives the list of the revoked to all agents that take it.
func (s *Server) distribute(ctx context.Context) {
	if n := len(s.authority.CRL()); n > wire.MaxCRL {
		s.log.Error("list of the revoked too long: agents keep the one before", "bytes", n, "limit", wire.MaxCRL)
	}
	_ = s.hub.call(ctx, func(time.Time) []action {
		for _, session := range s.hub.sessions {
			s.hub.sendRevocations(session)
		}
		return nil
	})
}

// sendRevocations gives a session the list of the revoked, if there is one and
// its agent takes it.
func (h *hub) sendRevocations(s *session) {
	if crl := h.revocations(); s.answers && len(crl) > 0 && len(crl) <= wire.MaxCRL {
		s.send(&wire.Revocations{CRL: crl})
	}
}

// restoreAdmissions shows what is on record of nodes, and keeps those that are
// not let in out of all pairs. It comes before the coordinator's Restore.
func (s *Server) restoreAdmissions() error {
	records, err := s.authority.Records()
	for _, m := range records {
		name := wire.NodeName(m.Name)
		s.hub.detail(name).Admission = m.State
		if m.State != store.Approved {
			s.hub.coordinator.barred[name] = true
		}
	}
	return err
}

// revokeNode keeps a node out from now on.
func (s *Server) revokeNode(ctx context.Context, by enrol.By, name wire.NodeName, reason string) error {
	if err := s.knows(ctx, name); err != nil {
		return err
	}
	if err := s.authority.Revoke(time.Now(), by, string(name), reason); err != nil {
		return err
	}
	if err := s.reconsider(ctx, name, ""); err != nil {
		return err
	}
	s.distribute(ctx)
	return nil
}

// approveNode lets a node in.
func (s *Server) approveNode(ctx context.Context, by enrol.By, name wire.NodeName) error {
	if err := s.knows(ctx, name); err != nil {
		return err
	}
	if err := s.authority.Approve(time.Now(), by, string(name)); err != nil {
		return err
	}
	return s.reconsider(ctx, name, "")
}

// setNode changes what holds for a node. Its session begins anew, by which the
// settings take effect; its tunnels stay.
func (s *Server) setNode(ctx context.Context, by enrol.By, name wire.NodeName, settings enrol.Settings) error {
	if err := s.knows(ctx, name); err != nil {
		return err
	}
	if settings.Subnets != nil {
		subnets, err := enrol.ParseSubnets(*settings.Subnets)
		if err != nil {
			return err
		}
		_, wrong, err := s.hub.Claim(ctx, wire.Endpoint{Name: name, Subnets: subnets})
		if err := errors.Join(err, asConflict(wrong)); err != nil {
			return err
		}
	}
	if err := s.authority.Set(time.Now(), by, string(name), settings); err != nil {
		return err
	}
	again := ""
	if settings.Subnets != nil || settings.Punch != nil {
		again = "an operator has changed what holds for " + string(name) + ": come back with it"
	}
	return s.reconsider(ctx, name, again)
}

// deleteNode forgets a node that is gone for good. Its name and its subnets are
// free again, its certificates are not.
func (s *Server) deleteNode(ctx context.Context, by enrol.By, name wire.NodeName) error {
	if err := s.knows(ctx, name); err != nil {
		return err
	}
	online := func() error {
		if s.hub.sessions[name] != nil {
			return fmt.Errorf("%w: node %s is online: stop its agent first, or revoke it", ErrConflict, name)
		}
		return nil
	}
	var failed error
	if err := s.hub.call(ctx, func(time.Time) []action { failed = online(); return nil }); err != nil || failed != nil {
		return errors.Join(err, failed)
	}
	if err := s.authority.Delete(time.Now(), by, string(name)); err != nil {
		return err
	}
	err := s.hub.call(ctx, func(now time.Time) []action {
		// Another session may have begun before the certificates were revoked; with
		// an existing CA they never are.
		actions := s.hub.stand(now, name, s.standing(name), "")
		if failed = online(); failed != nil {
			return actions
		}
		delete(s.hub.details, name)
		// By way of the recorder, or a record that waits there would bring the
		// node back.
		s.hub.recorder.forgetNode(name)
		return append(actions, s.hub.coordinator.Forget(now, name)...)
	})
	s.distribute(ctx)
	return errors.Join(err, failed)
}

// standing is a node's state; a store that cannot be read keeps nobody out.
func (s *Server) standing(name wire.NodeName) store.AdmissionState {
	m, err := s.authority.Standing(string(name))
	if err != nil {
		return store.Approved
	}
	return m.State
}

// knows is store.ErrNotFound for a node that has neither joined nor been online.
func (s *Server) knows(ctx context.Context, name wire.NodeName) error {
	known := false
	err := s.hub.call(ctx, func(time.Time) []action { known = s.hub.details[name] != nil; return nil })
	if err == nil && !known {
		err = fmt.Errorf("node %.64q: %w", string(name), store.ErrNotFound)
	}
	return err
}

func asConflict(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrConflict, err)
}
