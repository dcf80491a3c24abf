package agent

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		passed := make(chan error, 1)
		go func() { passed <- g.wait(t.Context()) }()
		synctest.Wait()
		if len(passed) > 0 {
			t.Fatalf("a new gate let somebody pass: %v", <-passed)
		}
		g.set(true)
		if err := <-passed; err != nil {
			t.Errorf("opened: %v", err)
		}
		g.set(true)
		if err := g.wait(t.Context()); err != nil {
			t.Errorf("opened twice: %v", err)
		}
		g.set(false)
		g.set(false)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { passed <- g.wait(ctx) }()
		synctest.Wait()
		if len(passed) > 0 {
			t.Fatalf("a gate that was shut again let somebody pass: %v", <-passed)
		}
		cancel()
		if err := <-passed; !errors.Is(err, context.Canceled) {
			t.Errorf("shut, and the context ended: %v", err)
		}
	})
}
