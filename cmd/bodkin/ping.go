package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Pings unless asked otherwise, as ping(8) does them, but that they end.
const (
	pingCount    = 4
	pingInterval = time.Second
	pingTimeout  = 2 * time.Second
)

// pingSummary is what `bodkin ping -o json` prints.
type pingSummary struct {
	Peer     wire.NodeName      `json:"peer"`
	Sent     int                `json:"sent"`
	Answered int                `json:"answered"`
	MinMs    float64            `json:"minMs,omitempty"` // round trips of those answered
	AvgMs    float64            `json:"avgMs,omitempty"`
	MaxMs    float64            `json:"maxMs,omitempty"`
	Pings    []agent.PingAnswer `json:"pings"`
}

// add counts one more answer.
func (s *pingSummary) add(a agent.PingAnswer) {
	s.Peer, s.Sent, s.Pings = a.Peer, s.Sent+1, append(s.Pings, a)
	if !a.Answered {
		return
	}
	if s.Answered == 0 || a.RTTMs < s.MinMs {
		s.MinMs = a.RTTMs
	}
	s.MaxMs = max(s.MaxMs, a.RTTMs)
	s.AvgMs = (s.AvgMs*float64(s.Answered) + a.RTTMs) / float64(s.Answered+1)
	s.Answered++
}

func newPing() *cobra.Command {
	var daemon agentFlags
	var o output
	count, interval, timeout := pingCount, pingInterval, pingTimeout
	cmd := &cobra.Command{
		Use:   "ping NODE",
		Short: "Ping a peer through its tunnel, and say over which path",
		Long: "Ping has this node's agent send ICMP echo requests from an address inside its own subnets to one inside\n" +
			"the peer's, so that they take the tunnel, and says with each answer whether that was the direct tunnel\n" +
			"or the relay. Exits with 1 when nothing was answered.",
		Example:           "  bodkin ping beijing.edge2\n  bodkin ping beijing.edge2 -c 20 -i 200ms\n  bodkin ping beijing.edge2 -c 1 -o json | jq .avgMs",
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: completeArgs(1, daemon.peerNames),
		RunE: func(cmd *cobra.Command, nodes []string) error {
			if count < 1 || interval <= 0 || timeout <= 0 || timeout > agent.PingTimeoutMax {
				return usageError{fmt.Errorf("-c %d -i %s -W %s: want at least one, some time between them, and at most %s for an answer",
					count, interval, timeout, agent.PingTimeoutMax)}
			}
			s := pingSummary{Peer: wire.NodeName(nodes[0])}
			live := o == outputTable || o == outputWide
			query := url.Values{"peer": {nodes[0]}, "timeout": {timeout.String()}}
			for i := range count {
				if i > 0 && sleep(cmd.Context(), interval) != nil {
					break
				}
				var a agent.PingAnswer
				if err := daemon.client().do(cmd.Context(), http.MethodPost, "/v1/ping", query, nil, &a); err != nil {
					if cmd.Context().Err() != nil {
						break
					}
					return err
				}
				s.add(a)
				if live {
					p := newPrinter(cmd)
					printPing(p, s.Sent, a, timeout)
					if err := p.flush(); err != nil {
						return err
					}
				}
			}
			if err := o.print(cmd, s, func(p *printer) { printPingSummary(p, s) }); err != nil {
				return err
			}
			if s.Answered == 0 {
				return errors.New("no answer from " + nodes[0])
			}
			return nil
		},
	}
	daemon.register(cmd)
	o.register(cmd)
	cmd.Flags().IntVarP(&count, "count", "c", pingCount, "how many")
	cmd.Flags().DurationVarP(&interval, "interval", "i", pingInterval, "time between them")
	cmd.Flags().DurationVarP(&timeout, "timeout", "W", pingTimeout, "how long to wait for each answer")
	return cmd
}

func printPing(p *printer, n int, a agent.PingAnswer, timeout time.Duration) {
	if !a.Answered {
		p.printf("%d  %s from %s within %s, %s", n, p.styled("no answer", bad), a.To, timeout, pingWay(p, a))
		if a.Problem != "" {
			p.printf(": %s", a.Problem)
		}
		p.printf("\n")
		return
	}
	p.printf("%d  answer from %s in %.3f ms, %s\n", n, a.To, a.RTTMs, pingWay(p, a))
}

// pingWay is what a ping went over.
func pingWay(p *printer, a agent.PingAnswer) string {
	switch {
	case a.State == "direct":
		return p.styled("direct", good) + " " + remote(a.Path)
	case a.Relay != "":
		return p.styled("relayed", warn) + " through " + string(a.Relay)
	}
	return p.styled("no tunnel", bad)
}

func printPingSummary(p *printer, s pingSummary) {
	if s.Sent == 0 {
		return
	}
	p.printf("\n%s: %d sent, %d answered, %d %% lost", s.Peer, s.Sent, s.Answered, 100*(s.Sent-s.Answered)/s.Sent)
	if s.Answered > 0 {
		p.printf("; min/avg/max %.3f/%.3f/%.3f ms", s.MinMs, s.AvgMs, s.MaxMs)
	}
	p.printf("\n")
}
