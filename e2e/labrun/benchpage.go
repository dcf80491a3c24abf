package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"time"

	cdpnetwork "github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

const (
	// pageNodes in one community, the connector among them, are 44,850 pairs.
	pageNodes = 300
	// pageTarget is the most that the page's first view may take with nothing in
	// the browser's cache, in milliseconds: people take it for at once.
	pageTarget = 200
	// pageWeightTarget is the most that it may be, in kB: half a second of a poor
	// mobile connection.
	pageWeightTarget = 150
	// pageLoads are measured of each way to open the page, after pageWarmUp that
	// are not: in those the browser starts what a person's has running.
	pageLoads, pageWarmUp = 15, 2
	// apiRuns are of each of the requests without a browser.
	apiRuns = 20
	// pagePatience bounds the wait for all pairs to be punched, and then the
	// measurements: half a minute on two idle cores, and much more on busy ones.
	pagePatience = 5 * time.Minute
	// stirPause is for the rendezvous to take in what an agent says, and longer
	// than that takes by far.
	stirPause = 200 * time.Millisecond
)

// paintedScript has a document say when a reader sees its first view: at the end
// of the frame after the page's own mark, in milliseconds since the navigation
// began.
const paintedScript = `window.painted = new Promise((done) => {
	new PerformanceObserver((list, self) => {
		if (list.getEntriesByName("bodkin-rendered").length === 0) return;
		self.disconnect();
		requestAnimationFrame(() => setTimeout(() => done(performance.now())));
	}).observe({ type: "mark", buffered: true });
})`

// weighed answers with the bytes on the wire of a document and of all that it asked
// for: when it follows the events, it has asked for everything.
const weighed = `new Promise((done) => {
	const look = () => document.getElementById("stream").textContent === "live"
		? done(performance.getEntries().reduce((sum, e) => sum + (e.transferSize ?? 0), 0)) : setTimeout(look, 10);
	look();
})`

// pageTimes are of the status page of pageNodes nodes that are online, with all
// pairs direct.
type pageTimes struct {
	overview, matrix []float64 // milliseconds of a request for them
	views            pageViews
	// unseen is why there are no views, "" where there are.
	unseen string
}

// pageViews are ways of opening the page.
type pageViews struct {
	cold   []pageLoad // with nothing in the cache
	newTab []pageLoad // the same, in a tab that the browser has yet to make
	again  []pageLoad // with the cache as the load before left it
}

// pageLoad is one opening of the page.
type pageLoad struct {
	ms    float64 // from the navigation until it is seen
	bytes float64 // on the wire
}

// measurePage has a herd join a rendezvous on loopback, and opens its page.
func measurePage(ctx context.Context, o benchOptions) (t pageTimes, err error) {
	dir, err := os.MkdirTemp("", "bdk-page-")
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	const edges = pageNodes - 1 // and the connector
	h, err := newHerd(dir, herdOptions{bin: o.bin, agents: edges, community: edges})
	if err != nil {
		return t, err
	}
	defer h.close()
	h.patience = pagePatience
	if err := h.start(); err != nil {
		return t, err
	}
	h.run(ctx)
	if err := h.until(ctx, "all pairs direct", metricsPoll, func() bool { return h.direct(ctx) == h.pairs() }); err != nil {
		return t, err
	}
	slog.Info("run", "nodes", len(h.agents), "pairs", h.pairs())
	if err := pause(ctx, herdCalm); err != nil {
		return t, err
	}
	ctx, cancel := context.WithTimeout(ctx, pagePatience)
	defer cancel()
	if t.overview, err = h.requests(ctx, "api/v1/overview"); err != nil {
		return t, err
	}
	if t.matrix, err = h.requests(ctx, "api/v1/matrix"); err != nil {
		return t, err
	}
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.unseen = err.Error()
		return t, nil
	}
	t.views, err = h.open(ctx, chromium)
	return t, err
}

// change has something change, so that no answer of the rendezvous is one that it
// has at hand from the last request.
func (h *herd) change(ctx context.Context, n int) error {
	if err := h.agents[n%len(h.agents)].stir(); err != nil {
		return err
	}
	return pause(ctx, stirPause)
}

// requests is how long the answers to a path take, in milliseconds, over a
// connection that is open already.
func (h *herd) requests(ctx context.Context, path string) (took []float64, err error) {
	for n := range apiRuns {
		if err := h.change(ctx, n); err != nil {
			return nil, err
		}
		began := time.Now()
		if err := h.request(ctx, path); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		took = append(took, inMs(time.Since(began)))
	}
	return took, nil
}

func (h *herd) request(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/%s", h.status, path), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// open measures all ways of opening the page, in a real browser.
func (h *herd) open(ctx context.Context, chromium string) (t pageViews, err error) {
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(chromium), chromedp.DisableGPU,
		// It would keep documents that have been left, each with its stream of events,
		// until there is none of its six connections to one server left.
		chromedp.Flag("disable-features", "BackForwardCache"))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // which Chromium refuses to root
	}
	allocated, cancel := chromedp.NewExecAllocator(ctx, options...)
	defer cancel()
	browser, end := chromedp.NewContext(allocated)
	defer end()
	defer func() { err = errors.Join(err, chromedp.Cancel(browser)) }()
	if err := chromedp.Do(browser); err != nil { // starts it
		return t, fmt.Errorf("%s: %w", chromium, err)
	}
	tab, closeTab := chromedp.NewContext(browser)
	defer closeTab()
	if err := prepare(tab); err != nil {
		return t, err
	}
	inNewTab := func() (pageLoad, error) {
		opened, closeIt := chromedp.NewContext(browser)
		defer closeIt()
		if err := prepare(opened); err != nil {
			return pageLoad{}, err
		}
		return h.load(opened, true)
	}
	var errs [3]error
	t.cold, errs[0] = h.loads(ctx, func() (pageLoad, error) { return h.load(tab, true) })
	t.again, errs[1] = h.loads(ctx, func() (pageLoad, error) { return h.load(tab, false) })
	t.newTab, errs[2] = h.loads(ctx, inNewTab)
	return t, errors.Join(errs[:]...)
}

// loads has the page opened again and again.
func (h *herd) loads(ctx context.Context, load func() (pageLoad, error)) (out []pageLoad, err error) {
	for n := range pageWarmUp + pageLoads {
		if err := h.change(ctx, n); err != nil {
			return nil, err
		}
		l, err := load()
		if err != nil {
			return nil, fmt.Errorf("open the page: %w", err)
		}
		if n >= pageWarmUp {
			out = append(out, l)
		}
	}
	return out, nil
}

// prepare has all documents of a tab say when they are seen.
func prepare(tab context.Context) error {
	_, err := chromedp.Call(tab, cdppage.AddScriptToEvaluateOnNewDocument, cdppage.AddScriptToEvaluateOnNewDocumentParams{Source: paintedScript})
	return err
}

// load opens the page in a tab, and sees that it says what there is.
func (h *herd) load(tab context.Context, uncached bool) (l pageLoad, err error) {
	_, err = chromedp.Call(tab, cdpnetwork.SetCacheDisabled, cdpnetwork.SetCacheDisabledParams{CacheDisabled: uncached})
	if err != nil {
		return l, err
	}
	if err := chromedp.Do(tab, chromedp.Navigate("about:blank"), chromedp.Navigate(fmt.Sprintf("http://%s/", h.status))); err != nil {
		return l, err
	}
	if l.ms, err = chromedp.Run(tab, chromedp.Evaluate[float64]("painted", chromedp.EvalAwaitPromise)); err != nil {
		return l, err
	}
	if l.bytes, err = chromedp.Run(tab, chromedp.Evaluate[float64](weighed, chromedp.EvalAwaitPromise)); err != nil {
		return l, err
	}
	says, err := chromedp.Run(tab, chromedp.Evaluate[string](`document.getElementById("tile-direct").textContent.replaceAll(",", "")`))
	if err != nil {
		return l, err
	}
	var direct, all int
	if _, err := fmt.Sscanf(says, "Pairs direct%d of %d", &direct, &all); err != nil || direct != h.pairs() || all != direct {
		return l, fmt.Errorf("it says %q; want %d direct", says, h.pairs())
	}
	return l, nil
}

// figures are those there are.
func (t pageTimes) figures() []figure {
	what := fmt.Sprintf("status page of %d nodes, ", pageNodes)
	out := []figure{
		{What: what + "GET api/v1/overview, median", Unit: "ms", Ours: median(t.overview)},
		{What: what + "GET api/v1/matrix, median", Unit: "ms", Ours: median(t.matrix)},
	}
	if t.unseen != "" {
		return out
	}
	cold, weight := split(t.views.cold)
	newTab, _ := split(t.views.newTab)
	again, weightAgain := split(t.views.again)
	return append([]figure{
		{What: what + "first view", Unit: "kB", Ours: median(weight), target: pageWeightTarget},
		{What: what + "first view, median", Unit: "ms", Ours: median(cold), target: pageTarget},
		{What: what + "first view, p95", Unit: "ms", Ours: p95(cold)},
		{What: what + "first view in a new tab, median", Unit: "ms", Ours: median(newTab)},
		{What: what + "opened again, cached", Unit: "kB", Ours: median(weightAgain)},
		{What: what + "opened again, cached, median", Unit: "ms", Ours: median(again)},
	}, out...)
}

// split has the times of loads, in milliseconds, and their weights, in kB.
func split(loads []pageLoad) (ms, kB []float64) {
	for _, l := range loads {
		ms, kB = append(ms, round(l.ms, 1)), append(kB, round(l.bytes/1000, 1))
	}
	return ms, kB
}
