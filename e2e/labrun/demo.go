package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/e2e"
	"github.com/bodkin-net/bodkin/e2e/lab"
)

const (
	// lookEvery is between looks at the rendezvous' API: often enough that
	// progress is seen as it happens.
	lookEvery = 50 * time.Millisecond
	// joinTimeout is for all nodes to come online, and settleTimeout for all
	// pairs to be direct. Both take a second or two; a busy
	// machine may take long.
	joinTimeout   = 30 * time.Second
	settleTimeout = 30 * time.Second
	// cutFor is how long a way stays cut once its pair is relayed.
	cutFor = 2 * time.Second
	// natTimeout is how long the first act waits for what the NATs do. It is
	// told when it is known; nothing depends on it.
	natTimeout = 5 * time.Second
	// pings are those of each pair, all pairs at once.
	pings        = 20
	pingInterval = 50 * time.Millisecond
)

// listed are the edges whose SAs are shown: edge1 has initiated to a punched
// address, edge3 has answered edge2's symmetric NAT and has a peer on its LAN.
var listed = []string{"edge1", "edge3"}

func demoCommand() *cobra.Command {
	var bin string
	var keep bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Bring up a connector and four edges behind NATs, and show them get direct tunnels",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return lab.ErrNotRoot
			}
			bin, err := filepath.Abs(bin)
			if err != nil {
				return err
			}
			d := &demo{screen: newScreen(os.Stdout), bin: bin, keep: keep, begun: time.Now(), watch: newWatcher()}
			return d.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&bin, "bin", "build/bodkin", "the bodkin binary")
	cmd.Flags().BoolVar(&keep, "keep", false, "leave it running until Ctrl-C or demo-stop")
	return cmd
}

// demo is one run of the demonstration. Its screen and watcher belong to the
// goroutine of run.
type demo struct {
	screen
	bin   string
	keep  bool
	begun time.Time
	net   *network
	watch *watcher
}

func (d *demo) run(ctx context.Context) (err error) {
	if d.keep {
		kept, err := claimKept()
		if err != nil {
			return err
		}
		defer kept.Close()
	}
	d.printf("%s\n", d.paint(strong, "Bodkin: direct strongSwan tunnels between edges behind NATs"))
	d.printf("%s\n", diagram)
	d.net, err = openNetwork(ctx, d.bin)
	if d.net != nil {
		defer func() {
			err = errors.Join(err, d.net.Close())
			d.printf("\nEverything the demo started is gone again.\n")
		}()
	}
	if err != nil {
		return err
	}
	page, err := openPage(ctx, d.net.Connector)
	if err != nil {
		return err
	}
	defer page.Close()
	d.printf("Status page, as long as this runs: %s\n", d.paint(strong, page.URL()))

	problem := d.show(ctx)
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if d.keep {
		d.lookAround(page.URL())
		<-ctx.Done()
	} else if problem != nil {
		d.printf("To look into it with everything running: make demo KEEP=1\n")
	}
	return problem
}

// show is the demonstration itself, from the first edge to the verdict.
func (d *demo) show(ctx context.Context) error {
	d.heading("1. Edges join")
	if err := d.during(ctx, d.join); err != nil {
		return err
	}
	d.heading("2. The operator applies a community")
	if err := d.apply(ctx); err != nil {
		return err
	}
	d.heading("3. Pairs become direct")
	if err := d.settle(ctx); err != nil {
		return err
	}
	d.event(event{"", fmt.Sprintf("%d pings through each", pings), faint})
	results, err := d.measure(ctx)
	if err != nil {
		return err
	}
	d.listSAs(ctx)
	d.heading("5. Pairs")
	problem := d.report(results)
	d.heading("6. The way between nat1 and nat3 is cut, and mended")
	return errors.Join(problem, d.cut(ctx))
}

// during does work and meanwhile prints what the rendezvous tells.
func (d *demo) during(ctx context.Context, work func(context.Context) error) error {
	done := make(chan error, 1)
	go func() { done <- work(ctx) }()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			d.look(ctx)
		case err := <-done:
			d.look(ctx)
			return err
		}
	}
}

// look prints what is new. A rendezvous that does not answer in time is asked
// again at the next look.
func (d *demo) look(ctx context.Context) {
	nodes, errNodes := d.net.Nodes(ctx)
	pairs, errPairs := d.net.Pairs(ctx)
	if errNodes != nil || errPairs != nil {
		return
	}
	for _, e := range d.watch.look(nodes, pairs) {
		d.event(e)
	}
}

func (d *demo) event(e event) {
	at := fmt.Sprintf("%6.2f s", time.Since(d.begun).Seconds())
	d.printf("%s  %-17s %s\n", d.paint(faint, at), e.who, d.paint(e.tone, e.what))
}

// join starts the edges and waits until the rendezvous has seen all there is
// to see of them.
func (d *demo) join(ctx context.Context) error {
	if err := d.net.addSites(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if err := d.net.WaitOnline(ctx, d.net.all()...); err != nil {
		return err
	}
	for _, e := range edgeNames() {
		if err := d.await(ctx, nodePair{e, connector}, e2e.IsDirect); err != nil {
			return err
		}
	}
	return d.awaitNATs(ctx)
}

// awaitNATs waits until every NAT is known, but not for long.
func (d *demo) awaitNATs(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, natTimeout)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		nodes, err := d.net.Nodes(ctx)
		if err != nil {
			return err
		}
		if natsKnown(nodes) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// apply uses the command an operator would.
func (d *demo) apply(ctx context.Context) error {
	text := communityFile()
	file := filepath.Join(d.net.Dir(), "all-edges.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	d.printf("%s cat all-edges.yaml\n%s", d.paint(faint, "$"), text)
	d.printf("%s bodkin community apply -f all-edges.yaml\n", d.paint(faint, "$"))
	out, err := d.net.Connector.Run(ctx, d.bin, "community", "apply", "--socket", d.net.AdminSocket, "-f", file)
	d.printf("%s", out)
	return err
}

// settle waits until every pair is direct. Pairs that do not get there in time
// are for report to tell.
func (d *demo) settle(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	_ = d.during(limited, func(ctx context.Context) error {
		for _, p := range demoPairs() {
			if err := d.await(ctx, p, e2e.IsDirect); err != nil {
				return err
			}
		}
		return nil
	})
	return ctx.Err()
}

func (d *demo) await(ctx context.Context, p nodePair, done func(*e2e.Pair) bool) error {
	_, err := d.net.WaitPair(ctx, d.net.nodes[p[0]], d.net.nodes[p[1]], done)
	return err
}

// measure pings through every pair at once and takes the pairs' last state.
func (d *demo) measure(ctx context.Context) ([]result, error) {
	names := demoPairs()
	results := make([]result, len(names))
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, p := range names {
		wg.Go(func() {
			results[i].names = p
			results[i].ping, errs[i] = d.net.nodes[p[0]].PingPod(ctx, d.net.nodes[p[1]], pings, pingInterval)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	pairs, err := d.net.Pairs(ctx)
	for i := range results {
		results[i].pair = d.net.find(pairs, results[i].names)
	}
	return results, err
}

// listSAs prints edges' SAs as `fabctl swanctl list-sa` does. A charon that
// does not answer has pairs that are down, of which report tells.
func (d *demo) listSAs(ctx context.Context) {
	d.heading("4. What strongSwan says: swanctl --list-sas on " + strings.Join(listed, " and "))
	for _, name := range listed {
		d.printf("========================== bodkin-agent %s =================================\n\n", d.paint(strong, d.net.nodes[name].Name))
		out, err := d.net.nodes[name].Swanctl(ctx, "--list-sas")
		if err != nil {
			out = d.paint(bad, err.Error())
		}
		d.printf("%s\n\n", strings.TrimRight(out, "\n"))
	}
}

func (d *demo) report(results []result) error {
	d.table(resultRows(results))
	wrong := faults(results)
	if len(wrong) == 0 {
		d.printf("\n%s after %.0f s: every pair is direct, and all its pings came through.\n",
			d.paint(good, "Done"), time.Since(d.begun).Seconds())
		return nil
	}
	d.printf("\n%s\n", d.paint(bad, "Not as it should be:"))
	for _, w := range wrong {
		d.printf("  %s\n", w)
	}
	return fmt.Errorf("%d of %d pairs are not as they should be", len(wrong), len(results))
}

// cut breaks the way between two edges while pings flow, as a firewall does that
// drops what it does not know, and mends it again.
func (d *demo) cut(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	a, b := d.net.nodes[cutPair[0]], d.net.nodes[cutPair[1]]
	stream, err := a.StartStream(ctx, b)
	if err != nil {
		return err
	}
	err = d.during(ctx, func(ctx context.Context) error { return d.cutAndMend(ctx, a, b) })
	echos := stream.Stop()
	if err != nil {
		return fmt.Errorf("%s – %s cut: %w", cutPair[0], cutPair[1], err)
	}
	d.printf("\n%d pings, one each %s: %d lost.\n", len(echos), millis(e2e.StreamEvery), echos.Lost())
	return nil
}

func (d *demo) cutAndMend(ctx context.Context, a, b *e2e.Node) error {
	if err := pause(ctx, cutFor); err != nil { // pings flow
		return err
	}
	if err := d.net.SetPath(a.Host, b.Host, false); err != nil {
		return err
	}
	if err := d.await(ctx, cutPair, e2e.IsRelayed); err != nil {
		return err
	}
	if err := pause(ctx, cutFor); err != nil {
		return err
	}
	if err := d.net.SetPath(a.Host, b.Host, true); err != nil {
		return err
	}
	return d.await(ctx, cutPair, e2e.IsDirect)
}

// lookAround tells what can be done with a demo that stays.
func (d *demo) lookAround(url string) {
	edge := d.net.nodes["edge1"]
	peer := d.net.nodes["edge3"]
	d.heading("It stays up. Look around, as root:")
	d.table([][]cell{
		{{text: "status page"}, {text: url}},
		{{text: "all pairs"}, {text: d.bin + " pairs --socket " + d.net.AdminSocket}},
		{{text: "one, step by step"}, {text: fmt.Sprintf("%s pair show %s %s --socket %s", d.bin, edge.Name, peer.Name, d.net.AdminSocket)}},
		{{text: "an edge's view"}, {text: d.bin + " status --socket " + edge.Socket()}},
		{{text: "its doctor"}, {text: fmt.Sprintf("ip netns exec %s %s doctor --config %s", edge.Namespace(), d.bin, edge.ConfigFile())}},
		{{text: "ping a peer"}, {text: fmt.Sprintf("ip netns exec %s ping -I %s %s", edge.Namespace(), edge.Pod, peer.Pod)}},
		{{text: "its SAs"}, {text: fmt.Sprintf("%s sas --node %s --socket %s", d.bin, edge.Name, d.net.AdminSocket)}},
		{{text: "strongSwan's words"}, {text: "swanctl --list-sas --uri unix://" + edge.VICISocket()}},
		{{text: "a NAT's state"}, {text: "ip netns exec " + d.net.nats["nat1"].Namespace() + " conntrack -L"}},
		{{text: "communities"}, {text: d.bin + " community get --socket " + d.net.AdminSocket}},
		{{text: "logs"}, {text: d.net.Dir() + "/*/*.log"}},
		{{text: "the end"}, {text: "Ctrl-C here, or make demo-stop"}},
	})
}
