package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/rendezvous"
)

func newRendezvous() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:     "rendezvous",
		Short:   "Run the rendezvous on the public node",
		Example: "  bodkin rendezvous --config /etc/bodkin/rendezvous.yaml",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := rendezvous.LoadConfig(config)
			if err != nil {
				return err
			}
			log, err := newLogger(cfg.LogLevel)
			if err != nil {
				return fmt.Errorf("%s: %w", config, err)
			}
			s, err := rendezvous.New(cfg, log)
			if err != nil {
				return err
			}
			defer onHangup(s.Reload)()
			return s.Run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&config, "config", "/etc/bodkin/rendezvous.yaml", "configuration file")
	return cmd
}

func newAgent() *cobra.Command {
	var config string
	var teardown bool
	cmd := &cobra.Command{
		Use:     "agent",
		Short:   "Run the agent on an edge or on the connector",
		Example: "  bodkin agent --config /etc/bodkin/agent.yaml",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := agent.LoadConfig(config)
			if err != nil {
				return err
			}
			cfg.TeardownOnExit = cfg.TeardownOnExit || teardown
			log, err := newLogger(cfg.LogLevel)
			if err != nil {
				return fmt.Errorf("%s: %w", config, err)
			}
			spareMemory()
			d, err := agent.New(cfg, buildVersion(), log)
			if err != nil {
				return err
			}
			defer onHangup(d.Reload)()
			return d.Run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&config, "config", "/etc/bodkin/agent.yaml", "configuration file")
	cmd.Flags().BoolVar(&teardown, "teardown-on-exit", false, "end the tunnels when the agent stops (they stay by default)")
	return cmd
}

// agentGC is the agent's GOGC, unless the environment says otherwise. Its heap is
// small and mostly listings of charon's SAs that are soon forgotten: 2 MB less
// memory on an edge are worth a tenth of a percent of its CPU.
const agentGC = 40

func spareMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(agentGC)
	}
}

// onHangup calls f for each SIGHUP, which would end the process otherwise, until
// stop is called.
func onHangup(f func()) (stop func()) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		for range hangups {
			f()
		}
	})
	return func() {
		signal.Stop(hangups)
		close(hangups)
		waiting.Wait()
	}
}
