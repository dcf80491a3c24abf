package charon

import (
	"context"
	"net"
	"time"

	"github.com/strongswan/govici/vici"
)

// session is one govici session with the connections below it (govici dials
// two, for commands and for events). It belongs to the goroutine that dialled
// it. After a transport error it is dead: an answer could still be under way,
// and VICI has no sequence numbers to tell it from the next one.
type session struct {
	vici *vici.Session
	// govici takes no context, so deadlines are set on its connections.
	conns []net.Conn
	// events is closed by govici's reader when it ends; nil while there is none.
	events <-chan vici.Event
	dead   bool
}

func dialSession(ctx context.Context, socket string, timeout time.Duration) (*session, error) {
	s := &session{}
	d := net.Dialer{Timeout: timeout}
	dial := func(_ context.Context, network, addr string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, network, addr)
		if err == nil {
			s.conns = append(s.conns, conn)
		}
		return conn, err
	}
	var err error
	s.vici, err = vici.NewSession(vici.WithAddr("unix", socket), vici.WithDialContext(dial))
	if err != nil {
		s.close()
		if ctx.Err() != nil {
			return nil, exchangeError(ctx, "dial", err)
		}
		return nil, dialError(socket, err)
	}
	return s, nil
}

// close ends both connections and waits for govici's reader. govici's own Close
// talks to charon first and keeps the connections open when that fails, so it
// is not used.
func (s *session) close() {
	s.dead = true
	for _, conn := range s.conns {
		conn.Close() // nothing is buffered; an error changes nothing
	}
	if s.events != nil {
		for range s.events {
		}
	}
}

// exchange is one caller's use of a session: every command in it gets its own
// deadline, and all of them end with ctx.
type exchange struct {
	ctx     context.Context
	session *session
	timeout time.Duration
	// errors counts what fails, nil for nowhere.
	errors *errorCounts
}

// failed counts a command that was refused or not answered.
func (x *exchange) failed(command string) {
	if x.errors != nil && x.ctx.Err() == nil {
		x.errors.add(command)
	}
}

// command sends one command and returns charon's answer. The answer is also
// returned with ErrRefused, for what it says beside its errmsg.
func (x *exchange) command(name string, args *vici.Message) (*vici.Message, error) {
	var answer *vici.Message
	err := x.timed(name, func(s *vici.Session) error {
		var err error
		answer, err = s.CommandRequest(name, args)
		if answer != nil {
			return nil // charon answered: yes or no, the session is fine
		}
		return err
	})
	if err != nil {
		x.failed(name)
		return nil, err
	}
	if answer.Err() != nil {
		if text(answer, "matches") != "0" {
			x.failed(name)
		}
		return answer, refusal(name, text(answer, "errmsg"))
	}
	return answer, nil
}

// stream sends a command whose answer arrives as events, and returns those.
func (x *exchange) stream(name, event string, args *vici.Message) ([]*vici.Message, error) {
	var messages []*vici.Message
	err := x.timed(name, func(s *vici.Session) error {
		var err error
		messages, err = s.StreamedCommandRequest(name, event, args)
		return err
	})
	if err != nil {
		x.failed(name)
		return nil, err
	}
	// govici appends the closing answer to what was streamed.
	last := len(messages) - 1
	if messages[last].Err() != nil {
		x.failed(name)
		return nil, refusal(name, text(messages[last], "errmsg"))
	}
	return messages[:last], nil
}

// subscribe starts the delivery of events. What does not fit into the buffer
// govici drops silently.
func (x *exchange) subscribe(buffer int, events ...string) (<-chan vici.Event, error) {
	raw := make(chan vici.Event, buffer)
	err := x.timed("subscribe", func(s *vici.Session) error {
		s.NotifyEvents(raw)
		x.session.events = raw // Subscribe starts the reader even if it fails
		return s.Subscribe(events...)
	})
	return raw, err
}

// timed runs one exchange under the timeout and the context. An error kills
// the session, and so does a context that ended while the answer came in.
func (x *exchange) timed(name string, run func(*vici.Session) error) error {
	if x.ctx.Err() != nil {
		return exchangeError(x.ctx, name, x.ctx.Err())
	}
	x.session.setDeadline(time.Now().Add(x.timeout))
	stop := context.AfterFunc(x.ctx, func() { x.session.setDeadline(time.Unix(1, 0)) })
	err := run(x.session.vici)
	interrupted := !stop()
	if err != nil || interrupted {
		x.session.dead = true
	}
	if err != nil {
		return exchangeError(x.ctx, name, err)
	}
	if !interrupted {
		x.session.setDeadline(time.Time{})
	}
	return nil
}

func (s *session) setDeadline(t time.Time) {
	for _, conn := range s.conns {
		conn.SetDeadline(t) // fails only when closed, and then the exchange fails too
	}
}
