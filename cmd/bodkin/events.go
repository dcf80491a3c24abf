package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/rendezvous"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

const (
	// shownEvents are those that events shows unless asked for more: a screen.
	shownEvents = 50
	// streamSilence is how long a stream may say nothing: the rendezvous sends a
	// comment every 15 s.
	streamSilence = 45 * time.Second
	// streamLine is the longest line of a stream, in bytes.
	streamLine = 1 << 20
)

func newEvents() *cobra.Command {
	var server rendezvousFlags
	var o output
	var follow bool
	var pair []string
	var node string
	limit := shownEvents
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what has happened: pairs, attempts, nodes, addresses, changes",
		Long: "Events prints the last events, newest last. With --follow it goes on with what happens from then on;\n" +
			"-o json is then one object to a line.",
		Example: "  bodkin events\n  bodkin events --follow --pair beijing.edge1,beijing.edge2\n" +
			"  bodkin events --follow -o json | jq -r 'select(.kind == \"address\") | .text'",
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			query, err := eventQuery(pair, node, limit)
			if err != nil {
				return usageError{err}
			}
			c, err := server.client()
			if err != nil {
				return err
			}
			var list rendezvous.EventList
			if err := c.get(cmd.Context(), "/api/v1/events", query, &list); err != nil {
				return err
			}
			if !follow {
				return o.print(cmd, list, func(p *printer) {
					slices.Reverse(list.Events)
					printEvents(p, list.Events)
				})
			}
			return followEvents(cmd, c, o, query, list.Events)
		},
	}
	server.register(cmd)
	o.register(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens, until interrupted")
	cmd.Flags().StringSliceVar(&pair, "pair", nil, "only events of this pair: NODE,NODE")
	cmd.Flags().StringVar(&node, "node", "", "only events of this node and of its pairs")
	cmd.Flags().IntVar(&limit, "limit", shownEvents, "how many of the last events")
	completeFlagWith(cmd, "node", server.nodeNames)
	return cmd
}

func eventQuery(pair []string, node string, limit int) (url.Values, error) {
	query := url.Values{}
	if len(pair) != 0 && len(pair) != 2 {
		return nil, fmt.Errorf("--pair %s: want NODE,NODE", strings.Join(pair, ","))
	}
	if limit < 1 {
		return nil, fmt.Errorf("--limit %d: want 1 or more", limit)
	}
	if len(pair) == 2 {
		query.Set("pair", string(wire.NewPairID(pair[0], pair[1])))
	}
	if node != "" {
		query.Set("node", node)
	}
	query.Set("limit", strconv.Itoa(limit))
	return query, nil
}

// followEvents prints the last events, oldest first, and then those to come. When
// the stream ends it is opened again: nothing is missed, for events are numbered.
func followEvents(cmd *cobra.Command, c *client, o output, query url.Values, last []rendezvous.EventView) error {
	ctx := cmd.Context()
	var after uint64
	show := func(e rendezvous.EventView) error {
		after = e.ID
		if !isOf(e, query.Get("node")) {
			return nil
		}
		switch o {
		case outputJSON:
			return json.NewEncoder(cmd.OutOrStdout()).Encode(e)
		case outputYAML:
			fmt.Fprintln(cmd.OutOrStdout(), "---")
			return printYAML(cmd.OutOrStdout(), e)
		}
		p := newPrinter(cmd)
		printEvents(p, []rendezvous.EventView{e})
		return p.flush()
	}
	for _, e := range slices.Backward(last) {
		if err := show(e); err != nil {
			return err
		}
	}
	query.Del("limit")
	for ctx.Err() == nil {
		err := c.stream(ctx, query, after, show)
		_, away := errors.AsType[unreachableError](err)
		if ctx.Err() == nil && !away && !errors.Is(err, errStreamEnded) {
			return err
		}
		if sleep(ctx, time.Second) != nil {
			break
		}
	}
	return nil // interrupted, as it is meant to end
}

// isOf reports whether an event is of a node or of one of its pairs.
func isOf(e rendezvous.EventView, node string) bool {
	a, b := e.Pair.Nodes()
	return node == "" || string(e.Node) == node || a == node || b == node
}

func printEvents(p *printer, events []rendezvous.EventView) {
	for _, e := range events {
		about := cmp.Or(strings.ReplaceAll(string(e.Pair), "|", " "), string(e.Node))
		st := cmp.Or(stateStyles[e.State], outcomeStyles[rendezvous.AttemptOutcome(e.State)])
		p.printf("%s  %-9s  ", e.At.Local().Format("2006-01-02 15:04:05"), e.Kind)
		if about != "" {
			p.printf("%s  ", about)
		}
		if e.State != "" {
			p.printf("%s  ", p.styled(e.State, st))
		}
		p.printf("%s\n", e.Text)
	}
}

// errStreamEnded: the connection of a stream is gone, or the rendezvous has ended
// it; opening it again may help.
var errStreamEnded = errors.New("the stream of events ended")

// stream calls each for the events after that ID, as they happen, until each
// returns an error, which it returns, or ctx is done.
func (c *client) stream(ctx context.Context, query url.Values, after uint64, each func(rendezvous.EventView) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	query = cloneQuery(query)
	query.Set("after", strconv.FormatUint(after, 10))
	silence := time.AfterFunc(streamSilence, cancel)
	defer silence.Stop()
	resp, err := c.open(ctx, http.MethodGet, "/api/v1/events/stream", query, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, streamLine)
	for lines.Scan() {
		silence.Reset(streamSilence)
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data:"))
		if !ok {
			continue // the ID is in the data, too; the rest is comments
		}
		var e rendezvous.EventView
		if err := json.Unmarshal(data, &e); err != nil {
			return fmt.Errorf("%s: an event is not understood: %w", c.where, err)
		}
		if err := each(e); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", errStreamEnded, err)
	}
	return errStreamEnded
}

func cloneQuery(q url.Values) url.Values {
	out := url.Values{}
	for key, values := range q {
		out[key] = slices.Clone(values)
	}
	return out
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
