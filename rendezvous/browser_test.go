package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// browserWait bounds the wait for what is sure to appear, on any machine.
const browserWait = 30 * time.Second

// browser is a Chromium with one tab. What it complains of, on its console or of
// the page's policy, fails the test in the end.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu         sync.Mutex
	complaints []string
	// accept is what of the complaints is part of the test.
	accept []string
}

// newBrowser starts one.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("%v: run make deps", err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.DisableGPU,
		chromedp.IgnoreCertErrors) // a test's own CA
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // which Chromium refuses to root
	}
	allocated, cancelAll := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, cancelTab := chromedp.NewContext(allocated)
	b := &browser{t: t, ctx: ctx}
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("chromium does not end: %v", err)
		}
		cancelTab()
		cancelAll()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, c := range b.complaints {
			if !b.accepted(c) {
				t.Errorf("the browser complains: %s", c)
			}
		}
	})
	if err := chromedp.Listen(ctx, b.heard); err != nil {
		t.Fatalf("chromium: %v", err)
	}
	call(b, log.Enable, cdp.Empty{})
	b.size(1280, 900, 1)
	return b
}

func (b *browser) accepted(complaint string) bool {
	for _, a := range b.accept {
		if strings.Contains(complaint, a) {
			return true
		}
	}
	return false
}

func (b *browser) heard(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *cdpruntime.EventExceptionThrown:
		d := e.ExceptionDetails
		text := fmt.Sprintf("%s %s:%d", d.Text, d.URL, d.LineNumber+1)
		if d.Exception != nil {
			text += " " + d.Exception.Description
		}
		b.complaints = append(b.complaints, text)
	case *cdpruntime.EventConsoleAPICalled:
		if e.Type == "error" || e.Type == "warning" {
			b.complaints = append(b.complaints, fmt.Sprintf("console: %v", e.Args))
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning || e.Entry.Source == log.EntrySourceSecurity {
			b.complaints = append(b.complaints, e.Entry.Text+" "+e.Entry.URL)
		}
	}
}

// call sends one command of the DevTools protocol.
func call[P, R any](b *browser, command cdp.Command[P, R], params P) R {
	b.t.Helper()
	result, err := chromedp.Call(b.ctx, command, params)
	if err != nil {
		b.t.Fatalf("chromium: %v", err)
	}
	return result
}

// do does things in the tab.
func (b *browser) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatalf("chromium: %v", err)
	}
}

func (b *browser) size(width, height int64, scale float64) {
	b.t.Helper()
	call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: scale, Mobile: width < 600})
}

func (b *browser) dark(on bool) {
	b.t.Helper()
	scheme := "light"
	if on {
		scheme = "dark"
	}
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
}

// visit opens an address, also one that differs only in its hash.
func (b *browser) visit(url string) {
	b.t.Helper()
	b.do(chromedp.Navigate(url))
}

// eval answers an expression of JavaScript, which may be a promise.
func eval[T any](b *browser, expression string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// text is what a reader sees of the first element that a selector names.
func (b *browser) text(selector string) string {
	b.t.Helper()
	return eval[string](b, fmt.Sprintf(`(document.querySelector(%q)?.innerText ?? "").replace(/\s+/g, " ").trim()`, selector))
}

// waitFor waits until an expression holds.
func (b *browser) waitFor(expression string) {
	b.t.Helper()
	for deadline := time.Now().Add(browserWait); ; time.Sleep(20 * time.Millisecond) {
		holds, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool]("!!("+expression+")"))
		if holds && err == nil { // the page may be changing for another one
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("not within %v: %s: %v\nthe page says: %s", browserWait, expression, err, b.text("body"))
		}
	}
}

// waitText waits until an element says something.
func (b *browser) waitText(selector, want string) {
	b.t.Helper()
	b.waitFor(fmt.Sprintf(`(document.querySelector(%q)?.innerText ?? "").replace(/\s+/g, " ").includes(%q)`, selector, want))
}

// press sends keys to what has the focus.
func (b *browser) press(keys ...string) {
	b.t.Helper()
	for _, key := range keys {
		b.do(chromedp.KeyEvent(key))
	}
}

// screenshot writes what is in sight to docs/img, when that was asked for.
func (b *browser) screenshot(name string) {
	b.t.Helper()
	dir := os.Getenv("BODKIN_SCREENSHOTS")
	if dir == "" {
		return
	}
	b.do(chromedp.Sleep(300 * time.Millisecond)) // for the frame after the last change
	png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatalf("chromium: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}
