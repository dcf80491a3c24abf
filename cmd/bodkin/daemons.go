package main

import (
	"context"
	"fmt"
	"log/slog"
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
		RunE:    func(cmd *cobra.Command, _ []string) error { return runRendezvous(cmd.Context(), config) },
	}
	cmd.Flags().StringVar(&config, "config", "/etc/bodkin/rendezvous.yaml", "configuration file")
	cmd.AddCommand(newInit())
	return cmd
}

func runRendezvous(ctx context.Context, config string) error {
	cfg, err := rendezvous.LoadConfig(config)
	if err != nil {
		return err
	}
	log, level, err := newLogger(cfg.LogLevel)
	if err != nil {
		return fmt.Errorf("%s: %w", config, err)
	}
	s, err := rendezvous.New(cfg, log)
	if err != nil {
		return err
	}
	s.Version = buildVersion()
	service := newService(log, func(ctx context.Context) (string, error) {
		h, err := s.Health(ctx)
		return fmt.Sprintf("nodes online %d/%d, pairs direct %d/%d", h.Online, h.Nodes, h.Direct, h.Pairs), err
	})
	defer onHangup(func() {
		service.reload(func() {
			s.Reload()
			reconfigure(log, level, func() (string, error) {
				cfg, err := rendezvous.LoadConfig(config)
				if err != nil {
					return "", err
				}
				return cfg.LogLevel, s.Reconfigure(ctx, cfg)
			})
		})
	})()
	defer service.start(ctx)()
	return s.Run(ctx)
}

func newAgent() *cobra.Command {
	var config string
	var teardown bool
	cmd := &cobra.Command{
		Use:     "agent",
		Short:   "Run the agent on an edge or on the connector",
		Example: "  bodkin agent --config /etc/bodkin/agent.yaml",
		Args:    args(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return runAgent(cmd.Context(), config, teardown) },
	}
	cmd.Flags().StringVar(&config, "config", "/etc/bodkin/agent.yaml", "configuration file")
	cmd.Flags().BoolVar(&teardown, "teardown-on-exit", false, "end the tunnels when the agent stops (they stay by default)")
	return cmd
}

func runAgent(ctx context.Context, config string, teardown bool) error {
	cfg, err := agent.LoadConfig(config)
	if err != nil {
		return err
	}
	cfg.TeardownOnExit = cfg.TeardownOnExit || teardown
	log, level, err := newLogger(cfg.LogLevel)
	if err != nil {
		return fmt.Errorf("%s: %w", config, err)
	}
	spareMemory()
	d, err := agent.New(cfg, buildVersion(), log)
	if err != nil {
		return err
	}
	service := newService(log, func(ctx context.Context) (string, error) {
		s, err := d.Status(ctx)
		return agentStatusLine(s), err
	})
	defer onHangup(func() {
		service.reload(func() {
			d.Reload()
			reconfigure(log, level, func() (string, error) {
				// The certificate has rules of its own, see Reload.
				cfg, err := agent.ReadConfig(config)
				if err != nil {
					return "", err
				}
				cfg.TeardownOnExit = cfg.TeardownOnExit || teardown
				return cfg.LogLevel, d.Reconfigure(ctx, cfg)
			})
		})
	})()
	defer service.start(ctx)()
	return d.Run(ctx)
}

// agentStatusLine is what `systemctl status` shows.
func agentStatusLine(s agent.Status) string {
	if len(s.Local) == 0 {
		return string(s.Node) + ": waits for an address"
	}
	direct := 0
	for _, t := range s.Tunnels {
		if t.State == "direct" {
			direct++
		}
	}
	line := fmt.Sprintf("%s: peers direct %d/%d", s.Node, direct, len(s.Tunnels))
	if !s.Rendezvous.Connected {
		line += ", rendezvous not connected"
	}
	if !s.Charon.Connected {
		line += ", charon not connected"
	}
	return line
}

// reconfigure reads a daemon's configuration again by read, which returns the log
// level in it. What cannot be read changes nothing.
func reconfigure(log *slog.Logger, level *slog.LevelVar, read func() (string, error)) {
	text, err := read()
	if err != nil {
		log.Error("configuration not read again; the one before stays in force", "err", err)
		return
	}
	var l slog.Level
	if l.UnmarshalText([]byte(text)) == nil { // read has checked it
		level.Set(l)
	}
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
