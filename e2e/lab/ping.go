package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"time"
)

// pingWait is how long ping waits for the last answers, longer than any delay
// the tests set.
const pingWait = 2 * time.Second

// PingResult counts the echo requests and answers of one Ping.
type PingResult struct {
	Sent     int
	Received int
	RTTs     []time.Duration // of each answer, in the order they came
}

// Lost is the number of requests that were not answered.
func (r PingResult) Lost() int { return r.Sent - r.Received }

// Ping sends count ICMP echo requests from src, the zero Addr leaving the
// choice to routing, one each interval. Requests without an answer are no
// error; the result counts them.
func (h *Host) Ping(ctx context.Context, dst netip.Addr, count int, interval time.Duration, src netip.Addr) (PingResult, error) {
	argv := []string{"ping", "-n", "-c", strconv.Itoa(count), "-i", seconds(interval), "-W", seconds(pingWait)}
	if src.IsValid() {
		argv = append(argv, "-I", src.String())
	}
	out, err := h.Run(ctx, append(argv, dst.String())...)
	// ping exits with 1 when an answer is missing.
	if exit := (*exec.ExitError)(nil); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		return PingResult{}, err
	}
	return parsePing(out)
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 3, 64) }

var (
	pingSummary = regexp.MustCompile(`(\d+) packets transmitted, (\d+) (?:packets )?received`)
	pingRTT     = regexp.MustCompile(`time=([0-9.]+) ms`)
)

// parsePing reads the output of iputils' ping.
func parsePing(out string) (PingResult, error) {
	summary := pingSummary.FindStringSubmatch(out)
	if summary == nil {
		return PingResult{}, fmt.Errorf("ping printed no summary: %s", out)
	}
	var r PingResult
	r.Sent, _ = strconv.Atoi(summary[1])
	r.Received, _ = strconv.Atoi(summary[2])
	for _, m := range pingRTT.FindAllStringSubmatch(out, -1) {
		ms, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return PingResult{}, fmt.Errorf("ping printed round trip %q ms: %w", m[1], err)
		}
		r.RTTs = append(r.RTTs, time.Duration(ms*float64(time.Millisecond)))
	}
	return r, nil
}
