// Command labrun runs Bodkin in a lab on this machine: a demonstration, the
// matrix of NAT combinations and the benchmarks. The Makefile builds and calls
// it; it needs root.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	if errors.Is(err, lab.ErrNotRoot) {
		err = errors.New("needs root for network namespaces and raw sockets: run it with sudo")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "labrun:", err)
		os.Exit(1)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "labrun",
		Short:         "Run Bodkin on real charons behind real NATs, all on this machine",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(demoCommand(), demoStopCommand(), matrixCommand(), traceCommand(), diagramsCommand(), benchCommand(), herdCommand(), faultsCommand(), soakCommand())
	return root
}
