package punch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// silences are tried one after the other. RFC 4787 section 4.3 asks NATs for two
// minutes, many give half a minute; below the second, strongSwan's keepalives of
// 20 s are too rare, below the first nothing can be done at a bearable price.
// Above the greatest, keepalives cost nothing worth saving.
var silences = [...]time.Duration{
	12 * time.Second, 25 * time.Second, 50 * time.Second, 100 * time.Second, 200 * time.Second, 300 * time.Second,
}

// LifetimeTest is the schedule that finds out how long a NAT keeps a mapping
// without traffic. It does no I/O: AwaitSilence is one try. The zero value is
// ready; it has one owner.
type LifetimeTest struct {
	passed int  // how many of silences are proven
	failed bool // the next one failed once: that may have been a lost packet
	done   bool
}

// Next is the silence to try, and false when nothing is left to find out.
func (t *LifetimeTest) Next() (silence time.Duration, ok bool) {
	if t.done || t.passed == len(silences) {
		return 0, false
	}
	return silences[t.passed], true
}

// Result takes the outcome of a try of Next. One that failed is tried again.
func (t *LifetimeTest) Result(alive bool) {
	switch {
	case alive:
		t.passed++
		t.failed = false
	case t.failed:
		t.done = true
	default:
		t.failed = true
	}
}

// Lifetime is the longest silence a mapping has survived, 0 while there is none.
func (t *LifetimeTest) Lifetime() time.Duration {
	if t.passed == 0 {
		return 0
	}
	return silences[t.passed-1]
}

// SilenceOptions say what one try of a LifetimeTest uses.
type SilenceOptions struct {
	From netip.AddrPort
	// Server is asked, Alternate is where its answer to CHANGE-REQUEST comes
	// from. Nobody else may send from From to Alternate meanwhile.
	Server, Alternate netip.AddrPort
	Credential        STUNCredential
	Silence           time.Duration
}

// AwaitSilence makes a mapping towards Alternate, leaves it alone for as long
// as Silence says, and tells whether Alternate's packets still come in through
// it, RFC 5780 section 4.6. An error means that nothing was learnt: no answer
// from the servers at all, a server that refuses RESPONSE-PORT or whose answers
// go to another public address than Alternate's (ErrRejected), or the end of ctx.
func AwaitSilence(ctx context.Context, p *Port, o SilenceOptions) (alive bool, err error) {
	opened, err := p.Bind(ctx, o.From, o.Alternate, BindOptions{Credential: o.Credential})
	if err != nil {
		return false, fmt.Errorf("mapping lifetime: %w", err)
	}
	select {
	case <-time.After(o.Silence):
	case <-ctx.Done():
		return false, fmt.Errorf("mapping lifetime: %w", ctx.Err())
	}
	res, err := p.Bind(ctx, o.From, o.Server, BindOptions{
		Credential: o.Credential, ChangePort: true, ResponsePort: opened.Mapped.Port(), pace: insistent,
	})
	switch {
	case err == nil && res.Origin == unmap(o.Alternate):
		return true, nil
	case err == nil:
		return false, fmt.Errorf("mapping lifetime: %w: %s answered from %s, not from %s", ErrRejected, o.Server, res.Origin, o.Alternate)
	case ctx.Err() != nil || !errors.Is(err, ErrTimeout):
		return false, fmt.Errorf("mapping lifetime: %w", err)
	}
	// Silence proves something only if the network works otherwise, and if the
	// answer was sent to the address that the mapping is at.
	now, err := p.Bind(ctx, o.From, o.Server, BindOptions{Credential: o.Credential})
	if err == nil && now.Mapped.Addr() != opened.Mapped.Addr() {
		err = fmt.Errorf("%w: no answer to %s, while requests come from %s", ErrRejected, opened.Mapped, now.Mapped)
	}
	if err != nil {
		return false, fmt.Errorf("mapping lifetime: %w", err)
	}
	return false, nil
}
