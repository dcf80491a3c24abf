package portmap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestUntilNext(t *testing.T) {
	tests := []struct {
		age, lifetime time.Duration
		silent        int
		want          time.Duration
		renew         bool
	}{
		{0, 2 * time.Hour, 0, checkInterval, false},
		{time.Hour - 10*time.Second, 2 * time.Hour, 0, 10 * time.Second, false},
		{time.Hour, 2 * time.Hour, 0, 0, true},
		{0, time.Second, 0, shortestRenewal, false},
		{shortestRenewal, time.Second, 0, 0, true},
		{1000 * time.Hour, 0, 0, checkInterval, false},
		{0, 2 * time.Hour, 1, recheckInterval, false},
	}
	for _, tt := range tests {
		if got := untilNext(tt.age, tt.lifetime, tt.silent); got != tt.want {
			t.Errorf("age %s of %s, %d silences: wait %s, want %s", tt.age, tt.lifetime, tt.silent, got, tt.want)
		}
		if got := renewalDue(tt.age, tt.lifetime); got != tt.renew {
			t.Errorf("age %s of %s: renewal due %t, want %t", tt.age, tt.lifetime, got, tt.renew)
		}
	}
}

// story is a router as Keep sees it, and what happened, each with its second.
type story struct {
	start  time.Time
	events []string
	// What the router answers, by call.
	requestErr, checkErr func() error
	outside              func() string
	gateway              func() netip.Addr
}

// after returns before until d has passed, then later.
func after[T any](start time.Time, d time.Duration, before, later T) func() T {
	return func() T {
		if time.Since(start) < d {
			return before
		}
		return later
	}
}

func (s *story) at() int { return int(time.Since(s.start) / time.Second) }

func (s *story) happened(format string, args ...any) {
	s.events = append(s.events, fmt.Sprintf("%d %s", s.at(), fmt.Sprintf(format, args...)))
}

func (s *story) request(_ context.Context, suggested netip.AddrPort) (Mapping, error) {
	if err := s.requestErr(); err != nil {
		return Mapping{}, err
	}
	s.happened("request %s", suggested)
	return Mapping{"PCP", netip.MustParseAddrPort(s.outside()), time.Hour}, nil
}

func (s *story) check(context.Context) error { return s.checkErr() }

func (s *story) release(context.Context) error {
	s.happened("release")
	return nil
}

func never() error { return nil }

// tell runs Keep for d of a clock of its own.
func tell(t *testing.T, d time.Duration, change func(*story), look chan struct{}) []string {
	t.Helper()
	s := &story{start: time.Now(), requestErr: never, checkErr: never,
		outside: func() string { return "203.0.113.7:4500" }, gateway: func() netip.Addr { return testClient }}
	change(s)
	k := &keeper{
		Options:   Options{Inside: netip.AddrPortFrom(netip.IPv4Unspecified(), 4500), Look: look, Log: slog.New(slog.DiscardHandler)},
		protocols: []protocol{{"PCP", func(context.Context, site) (mapper, error) { return s, nil }}},
		router:    func() (router, error) { return router{addr: s.gateway()}, nil },
		found:     func(m Mapping) { s.happened("found %s", m.Outside) },
	}
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	k.run(ctx)
	return s.events
}

// fails returns err from the nth call on, for count calls.
func fails(err error, nth, count int) func() error {
	calls := 0
	return func() error {
		if calls++; calls >= nth && calls < nth+count {
			return err
		}
		return nil
	}
}

func TestKeep(t *testing.T) {
	tests := []struct {
		name   string
		d      time.Duration
		change func(*story)
		want   []string
	}{
		{"renewed at half its lifetime, released at the end", 65 * time.Minute, func(*story) {}, []string{
			"0 request 0.0.0.0:4500", "0 found 203.0.113.7:4500",
			"1800 request 203.0.113.7:4500", "3600 request 203.0.113.7:4500", "3900 release"}},
		{"made anew when the router has lost it", 100 * time.Second, func(s *story) { s.checkErr = fails(errLost, 1, 1) }, []string{
			"0 request 0.0.0.0:4500", "0 found 203.0.113.7:4500", "60 request 203.0.113.7:4500", "100 release"}},
		{"two silences are none", 100 * time.Second, func(s *story) { s.checkErr = fails(ErrSilent, 1, 2) }, []string{
			"0 request 0.0.0.0:4500", "0 found 203.0.113.7:4500", "100 release"}},
		{"silent for good, then back", 100 * time.Second, func(s *story) {
			s.checkErr, s.requestErr = fails(ErrSilent, 1, silences), fails(ErrSilent, 2, 1)
		}, []string{
			"0 request 0.0.0.0:4500", "0 found 203.0.113.7:4500", "70 release", "70 found invalid AddrPort",
			"75 request 203.0.113.7:4500", "75 found 203.0.113.7:4500", "100 release"}},
		{"refused, with ever longer rests", 40 * time.Second, func(s *story) { s.requestErr = fails(ErrRefused, 1, 3) }, []string{
			"0 release", "5 release", "15 release", "35 request 0.0.0.0:4500", "35 found 203.0.113.7:4500", "40 release"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if got := tell(t, tt.d, tt.change, nil); !slices.Equal(got, tt.want) {
					t.Errorf("got  %q\nwant %q", got, tt.want)
				}
			})
		})
	}
}

// A request to look renews a mapping at once, and hurries a search, though no
// faster than it would start.
func TestLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		look := make(chan struct{}, 1)
		time.AfterFunc(10*time.Second, func() { look <- struct{}{} })
		got := tell(t, 20*time.Second, func(s *story) {
			s.outside = after(s.start, 9*time.Second, "203.0.113.7:4500", "203.0.113.8:4500")
		}, look)
		want := []string{"0 request 0.0.0.0:4500", "0 found 203.0.113.7:4500",
			"10 request 203.0.113.7:4500", "10 found 203.0.113.8:4500", "20 release"}
		if !slices.Equal(got, want) {
			t.Errorf("held: got %q, want %q", got, want)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		look := make(chan struct{}, 1)
		time.AfterFunc(16*time.Second, func() { look <- struct{}{} })
		got := tell(t, 25*time.Second, func(s *story) { s.requestErr = fails(ErrRefused, 1, 3) }, look)
		want := []string{"0 release", "5 release", "15 release", "20 request 0.0.0.0:4500", "20 found 203.0.113.7:4500", "25 release"}
		if !slices.Equal(got, want) {
			t.Errorf("searched: got %q, want %q", got, want)
		}
	})
}

// Another default gateway is another router: the mapping is made there.
func TestAnotherGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := tell(t, 100*time.Second, func(s *story) {
			s.gateway = after(s.start, 30*time.Second, testClient, netip.MustParseAddr("192.168.9.1"))
			s.outside = after(s.start, 30*time.Second, "203.0.113.7:4500", "203.0.113.9:4500")
		}, nil)
		want := []string{"0 request 0.0.0.0:4500", "0 found 203.0.113.7:4500",
			"60 request 203.0.113.7:4500", "60 found 203.0.113.9:4500", "100 release"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// The protocols are tried in their order, whichever answers first.
func TestPreference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		find := func(name string, delay time.Duration, findErr, requestErr error) protocol {
			return protocol{name, func(ctx context.Context, _ site) (mapper, error) {
				select {
				case <-time.After(delay):
				case <-ctx.Done():
					return nil, ctx.Err()
				}
				m := &story{start: time.Now(), outside: func() string { return "203.0.113.7:4500" }, checkErr: never}
				m.requestErr = func() error { asked = append(asked, name); return requestErr }
				return m, findErr
			}}
		}
		k := &keeper{
			Options: Options{Log: slog.New(slog.DiscardHandler)},
			protocols: []protocol{
				find("silent", 2*time.Second, ErrSilent, nil), find("refusing", time.Second, nil, ErrRefused),
				find("good", 0, nil, nil), find("late", time.Hour, nil, nil)},
			router: func() (router, error) { return router{addr: testClient}, nil },
		}
		if _, m, err := k.acquire(t.Context()); err != nil || m.Outside.Port() != 4500 {
			t.Errorf("got %+v, %v", m, err)
		}
		if want := []string{"refusing", "good"}; !reflect.DeepEqual(asked, want) {
			t.Errorf("asked %q, want %q", asked, want)
		}
		k.protocols = k.protocols[:2]
		if _, _, err := k.acquire(t.Context()); !errors.Is(err, ErrSilent) || !errors.Is(err, ErrRefused) {
			t.Errorf("error %v, want both reasons", err)
		}
	})
}
