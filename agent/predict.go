package agent

import (
	"context"
	"net"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/punch/rawudp"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

const (
	// predictTimeout is below the 2 s that the rendezvous waits for the answer.
	predictTimeout = 1500 * time.Millisecond
	// predictQueue bounds the questions that wait; the rendezvous asks once for
	// each attempt, and would not wait for the answer to a ninth.
	predictQueue = 8
)

// prediction is a question for the next port.
type prediction struct {
	attempt wire.AttemptID
	ask     punch.NextPortOptions
}

// predictor asks for next ports, one question after the other: each takes two
// ports from the NAT that counts, and would disturb another's count. One
// goroutine.
type predictor struct {
	in  chan prediction
	out chan *wire.Prepared
}

func newPredictor() predictor {
	return predictor{in: make(chan prediction, predictQueue), out: make(chan *wire.Prepared)}
}

func (p predictor) run(ctx context.Context) {
	for {
		select {
		case q := <-p.in:
			select {
			case p.out <- answer(ctx, q):
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func answer(ctx context.Context, q prediction) *wire.Prepared {
	ctx, cancel := context.WithTimeout(ctx, predictTimeout)
	defer cancel()
	next, step, err := punch.NextPort(ctx, q.ask)
	if err != nil {
		q.ask.Log.Warn("next port not predicted", "err", err)
		return &wire.Prepared{Attempt: q.attempt}
	}
	return &wire.Prepared{Attempt: q.attempt, Next: next, Step: step}
}

// predict has the next port asked for. An answer without one comes at once when
// that is not possible, so that the attempt goes on without it.
func (d *Daemon) predict(m *wire.Prepare) {
	none := &wire.Prepared{Attempt: m.Attempt}
	base := d.net[ipv4].base
	stun, err := stunServiceOf(d.link, ipv4)
	if err != nil || !base.IsValid() || permitted(d.cfg.Punch, wire.StrategyPredict) != nil {
		d.send(none)
		return
	}
	// Without the session's credential: the rendezvous would take what it sees for
	// the shared port's mapping.
	q := prediction{attempt: m.Attempt, ask: punch.NextPortOptions{
		Listen: func() (net.PacketConn, error) {
			return rawudp.ListenPlain(rawudp.PlainOptions{Addr: base.Addr(), Mark: d.cfg.Mark})
		},
		Server: stun.servers[0], Step: d.net[ipv4].nat.Step, Log: d.log,
	}}
	select {
	case d.predictor.in <- q:
	default:
		d.send(none)
	}
}
