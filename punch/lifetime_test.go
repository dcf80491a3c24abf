package punch

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/transport/v5/vnet"
)

func TestLifetimeSchedule(t *testing.T) {
	for name, tc := range map[string]struct {
		lifetime time.Duration // of the NAT's mappings
		losses   map[int]bool  // tries that fail though the mapping lives
		tries    []int         // in seconds
		want     time.Duration
	}{
		"forever":           {time.Hour, nil, []int{12, 25, 50, 100, 200, 300}, 300 * time.Second},
		"Linux":             {120 * time.Second, nil, []int{12, 25, 50, 100, 200, 200}, 100 * time.Second},
		"short":             {20 * time.Second, nil, []int{12, 25, 25}, 12 * time.Second},
		"too short":         {10 * time.Second, nil, []int{12, 12}, 0},
		"half a minute":     {30 * time.Second, nil, []int{12, 25, 50, 50}, 25 * time.Second},
		"one try was lost":  {120 * time.Second, map[int]bool{2: true}, []int{12, 25, 50, 50, 100, 200, 200}, 100 * time.Second},
		"each once":         {60 * time.Second, map[int]bool{1: true, 3: true}, []int{12, 25, 25, 50, 50, 100, 100}, 50 * time.Second},
		"both tries of one": {time.Hour, map[int]bool{2: true, 3: true}, []int{12, 25, 50, 50}, 25 * time.Second},
	} {
		var test LifetimeTest
		var tries []int
		for {
			silence, ok := test.Next()
			if !ok {
				break
			}
			test.Result(silence < tc.lifetime && !tc.losses[len(tries)])
			if tries = append(tries, int(silence.Seconds())); len(tries) > 20 {
				t.Fatalf("%s: no end: %v", name, tries)
			}
		}
		if !slices.Equal(tries, tc.tries) || test.Lifetime() != tc.want {
			t.Errorf("%s: %v came to %s, want %v and %s", name, tries, test.Lifetime(), tc.tries, tc.want)
		}
	}
}

// vnet keeps a mapping for as long as it is told.
func TestAwaitSilence(t *testing.T) {
	for name, typ := range map[string]vnet.NATType{"port-restricted": portRestricted, "symmetric": symmetricNAT} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				typ.MappingLifeTime = 40 * time.Second
				p, in := behindNAT(t, &typ, 10*time.Millisecond, startBodkin)
				at := in.stun.all()
				o := SilenceOptions{From: p.Local()[0], Server: at[1], Alternate: at[3], Credential: stunCred}
				for silence, want := range map[time.Duration]bool{25 * time.Second: true, 50 * time.Second: false} {
					o.Silence = silence
					if alive, err := AwaitSilence(t.Context(), p, o); err != nil || alive != want {
						t.Errorf("%s of silence: alive %t, %v; want %t", silence, alive, err, want)
					}
				}
			})
		})
	}
}

// What goes wrong says nothing about the NAT.
func TestAwaitSilenceLearnsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		typ := fullCone
		typ.MappingLifeTime = 40 * time.Second
		p, in := behindNAT(t, &typ, 10*time.Millisecond, startBodkin)
		at := in.stun.all()
		o := SilenceOptions{From: p.Local()[0], Server: at[1], Alternate: at[3], Credential: stunCred, Silence: 20 * time.Second}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := AwaitSilence(ctx, p, o); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("out of time: %v, want %v", err, context.DeadlineExceeded)
		}
		time.AfterFunc(10*time.Second, func() { in.cut.Store(true) })
		if _, err := AwaitSilence(t.Context(), p, o); !errors.Is(err, ErrTimeout) {
			t.Errorf("network gone meanwhile: %v, want %v", err, ErrTimeout)
		}
		in.cut.Store(false)
		o.Silence = 50 * time.Second
		in.stun.moveAfter(1)
		if _, err := AwaitSilence(t.Context(), p, o); !errors.Is(err, ErrRejected) {
			t.Errorf("another address meanwhile: %v, want %v", err, ErrRejected)
		}
		o.Silence = 20 * time.Second
		o.Server, o.Alternate = at[0], at[3]
		if _, err := AwaitSilence(t.Context(), p, o); !errors.Is(err, ErrRejected) {
			t.Errorf("another alternate than asked for: %v, want %v", err, ErrRejected)
		}
	})
}
