package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// Pair is a pair as the rendezvous' API tells it.
type Pair struct {
	ID             string          `json:"id"`
	Nodes          [2]string       `json:"nodes"`
	State          string          `json:"state"`
	Reason         string          `json:"reason"`
	Relay          string          `json:"relay"` // the connector, while relayed
	Paths          map[string]Path `json:"paths"`
	Punching       bool            `json:"punching"`
	Attempts       int             `json:"attempts"`
	TimeToDirectMs int64           `json:"timeToDirectMs"`
	Verdict        Verdict         `json:"verdict"`
	// Strategy and Packets are those of the last attempt that ended.
	Strategy string `json:"strategy"`
	Packets  int    `json:"packets"`
}

// TimeToDirect is that of the last success.
func (p *Pair) TimeToDirect() time.Duration {
	return time.Duration(p.TimeToDirectMs) * time.Millisecond
}

// Failed reports whether an attempt has ended without a direct tunnel. While the
// next one runs, the reason is still that of the last.
func (p *Pair) Failed() bool {
	return !IsDirect(p) && (p.Attempts > 1 || p.Attempts == 1 && !p.Punching)
}

// Path is how one node of a pair reaches the other.
type Path struct {
	Kind   string         `json:"kind"`
	Remote netip.AddrPort `json:"remote"`
}

// Observed is a node as the rendezvous' API tells it.
type Observed struct {
	Name     string         `json:"name"`
	Online   bool           `json:"online"`
	Observed netip.AddrPort `json:"observed"`
	// Fingerprint is that of the certificate its agent came with.
	Fingerprint string `json:"certificateSHA256"`
	NAT         struct {
		Present   bool   `json:"present"`
		Mapping   string `json:"mapping"`
		Filtering string `json:"filtering"`
		Poisoned  string `json:"poisoned"`
		Blocked   string `json:"blocked"`
	} `json:"nat"`
}

func (c *Cluster) get(ctx context.Context, path string, out any) error {
	return c.do(ctx, http.MethodGet, path, nil, out)
}

func (c *Cluster) do(ctx context.Context, method, path string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://bodkin"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.admin.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	if out == nil || !json.Valid(b) {
		return nil
	}
	return json.Unmarshal(b, out)
}

// Nodes lists the nodes the rendezvous knows.
func (c *Cluster) Nodes(ctx context.Context) ([]Observed, error) {
	var list struct {
		Nodes []Observed `json:"nodes"`
	}
	return list.Nodes, c.get(ctx, "/api/v1/nodes", &list)
}

// Pairs lists the pairs the rendezvous knows.
func (c *Cluster) Pairs(ctx context.Context) ([]Pair, error) {
	var list struct {
		Pairs []Pair `json:"pairs"`
	}
	return list.Pairs, c.get(ctx, "/api/v1/pairs", &list)
}

// Pair is the pair of two nodes, or nil.
func (c *Cluster) Pair(ctx context.Context, a, b *Node) (*Pair, error) {
	pairs, err := c.Pairs(ctx)
	for _, p := range pairs {
		if p.Nodes == [2]string{a.Name, b.Name} || p.Nodes == [2]string{b.Name, a.Name} {
			return &p, err
		}
	}
	return nil, err
}

// community is the YAML of one.
func community(name string, members ...*Node) []byte {
	y := "apiVersion: fabedge.io/v1alpha1\nkind: Community\nmetadata:\n  name: " + name + "\nspec:\n  members:\n"
	for _, m := range members {
		y += "    - " + m.Name + "\n"
	}
	return []byte(y)
}

// Apply puts one community in force.
func (c *Cluster) Apply(ctx context.Context, name string, members ...*Node) error {
	return c.do(ctx, http.MethodPut, "/api/v1/communities?file="+url.QueryEscape(name+".yaml"), community(name, members...), nil)
}

// Forecast is what the rendezvous expects of two nodes that may share nothing
// yet.
func (c *Cluster) Forecast(ctx context.Context, a, b *Node) (Verdict, error) {
	var forecast struct {
		Pairs []struct {
			Verdict Verdict `json:"verdict"`
		} `json:"pairs"`
	}
	if err := c.do(ctx, http.MethodPost, "/api/v1/forecast", community("forecast", a, b), &forecast); err != nil {
		return Verdict{}, err
	}
	if len(forecast.Pairs) != 1 {
		return Verdict{}, fmt.Errorf("forecast for %s and %s has %d pairs, want 1", a.Name, b.Name, len(forecast.Pairs))
	}
	return forecast.Pairs[0].Verdict, nil
}

// Delete removes a community.
func (c *Cluster) Delete(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, "/api/v1/communities/"+name, nil, nil)
}

// until polls cond until it is true, fails, or ctx ends.
func (c *Cluster) until(ctx context.Context, what string, cond func() (bool, error)) error {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		ok, err := cond()
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		}
	}
}

// WaitOnline waits until all nodes are online and observed, or known not to get
// a UDP packet out.
func (c *Cluster) WaitOnline(ctx context.Context, nodes ...*Node) error {
	return c.until(ctx, "all nodes online", func() (bool, error) {
		known, err := c.Nodes(ctx)
		if err != nil {
			return false, err
		}
		online := map[string]bool{}
		for _, o := range known {
			online[o.Name] = o.Online && (o.Observed.IsValid() || o.NAT.Blocked != "")
		}
		for _, n := range nodes {
			if err := ended(n.agent); err != nil {
				return false, fmt.Errorf("agent of %s: %w", n.Name, err)
			}
			if !online[n.Name] {
				return false, nil
			}
		}
		return true, nil
	})
}

// WaitPair waits until the pair satisfies cond and returns it.
func (c *Cluster) WaitPair(ctx context.Context, a, b *Node, cond func(*Pair) bool) (*Pair, error) {
	var last *Pair
	err := c.until(ctx, a.Name+" and "+b.Name, func() (bool, error) {
		p, err := c.Pair(ctx, a, b)
		if err == nil {
			last = p
		}
		return err == nil && p != nil && cond(p), nil
	})
	if err != nil {
		err = fmt.Errorf("%w; last seen %+v", err, last)
	}
	return last, err
}

// IsDirect is a condition for WaitPair.
func IsDirect(p *Pair) bool { return p.State == "direct" }

// IsRelayed is a condition for WaitPair.
func IsRelayed(p *Pair) bool { return p.State == "relayed" }

// PingPod pings b's pod address from a's, through whatever tunnel there is.
func (n *Node) PingPod(ctx context.Context, to *Node, count int, interval time.Duration) (lab.PingResult, error) {
	return n.Ping(ctx, to.Pod, count, interval, n.Pod)
}

// Status is what the node's agent says of itself.
type Status struct {
	// Local is where its shared port is open.
	Local      []netip.AddrPort `json:"local"`
	Rendezvous struct {
		Connected bool `json:"connected"`
	} `json:"rendezvous"`
	Charon struct {
		Connected bool `json:"connected"`
	} `json:"charon"`
	Certificate  Certificate `json:"certificate"`
	StateProblem string      `json:"stateProblem"`
	// PortMapping is the port its router maps to it, if it was asked to.
	PortMapping struct {
		Outside netip.AddrPort `json:"outside"`
	} `json:"portMapping"`
	Tunnels []struct {
		Peer      string    `json:"peer"`
		State     string    `json:"state"`
		Reason    string    `json:"reason"`
		Monitored bool      `json:"monitored"`
		Path      Path      `json:"path"`
		Since     time.Time `json:"since"`
	} `json:"tunnels"`
}

// Certificate is what a node's status says of its own.
type Certificate struct {
	Serial  string `json:"serial"`
	Problem string `json:"problem"`
}

// Status asks the node's agent with `bodkin status -o json`.
func (n *Node) Status(ctx context.Context) (Status, error) {
	var s Status
	out, err := n.Run(ctx, n.cluster.bin, "status", "--socket", n.Socket(), "-o", "json")
	if err != nil {
		return s, fmt.Errorf("%w: %s", err, out)
	}
	return s, json.Unmarshal([]byte(out), &s)
}
