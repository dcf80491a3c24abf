package lab

import (
	"context"
	"errors"
	"fmt"
	"math"
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
//
// Without a deadline (-w) ping waits for its last answer no longer than two of
// the round trips so far, and calls it lost on a machine that stalls. With one
// it goes on sending until it has count answers; parsePing leaves those out.
func (h *Host) Ping(ctx context.Context, dst netip.Addr, count int, interval time.Duration, src netip.Addr) (PingResult, error) {
	deadline := math.Ceil((time.Duration(count-1)*interval + pingWait).Seconds()) // ping wants whole seconds
	argv := []string{"ping", "-n", "-c", strconv.Itoa(count), "-i", seconds(interval), "-w", strconv.Itoa(int(deadline))}
	if src.IsValid() {
		argv = append(argv, "-I", src.String())
	}
	out, err := h.Run(ctx, append(argv, dst.String())...)
	// ping exits with 1 when an answer is missing.
	if exit := (*exec.ExitError)(nil); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		return PingResult{}, err
	}
	return parsePing(out, count)
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 3, 64) }

var (
	pingSummary = regexp.MustCompile(`(\d+) packets transmitted, `)
	pingAnswer  = regexp.MustCompile(`icmp_seq=(\d+) .*time=([0-9.]+) ms`)
)

// parsePing reads the output of iputils' ping about its first count requests.
func parsePing(out string, count int) (PingResult, error) {
	summary := pingSummary.FindStringSubmatch(out)
	if summary == nil {
		return PingResult{}, fmt.Errorf("ping printed no summary: %s", out)
	}
	sent, err := strconv.Atoi(summary[1])
	if err != nil {
		return PingResult{}, fmt.Errorf("ping printed that it sent %q: %w", summary[1], err)
	}
	r := PingResult{Sent: min(sent, count)}
	answered := map[int]bool{}
	for _, m := range pingAnswer.FindAllStringSubmatch(out, -1) {
		seq, err := strconv.Atoi(m[1])
		if err != nil || seq > count || answered[seq] { // after the last, or a duplicate
			continue
		}
		answered[seq] = true
		ms, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return PingResult{}, fmt.Errorf("ping printed round trip %q ms: %w", m[2], err)
		}
		r.RTTs = append(r.RTTs, time.Duration(ms*float64(time.Millisecond)))
	}
	r.Received = len(r.RTTs)
	return r, nil
}
