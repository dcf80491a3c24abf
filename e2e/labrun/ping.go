package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

const (
	// pingEvery is the resolution of a time to the first ping.
	pingEvery = 10 * time.Millisecond
	// pingID marks our echo requests; nobody else sends any in the lab.
	pingID = 4711
	// firstPingTimeout is beyond what either method can take and still work.
	firstPingTimeout = 30 * time.Second
)

var errAnsweredEarly = errors.New("a ping was answered before the start: the tunnel of the run before stands")

// timeToPing pings dst from src on a host every pingEvery, calls act, and
// returns the time from that call to the first answer.
func timeToPing(ctx context.Context, from *lab.Host, src, dst netip.Addr, act func(context.Context) error) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, firstPingTimeout)
	defer cancel()
	conn, err := listenICMP(from, src)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()

	type answer struct {
		at  time.Time
		err error
	}
	answers := make(chan answer, 1)
	sent := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { sendPings(ctx, conn, dst, sent) })
	wg.Go(func() {
		at, err := firstAnswer(conn, dst)
		answers <- answer{at, err}
	})
	<-sent
	start := time.Now()
	if err := act(ctx); err != nil {
		return 0, err
	}
	a := <-answers
	switch {
	case a.err != nil:
		return 0, fmt.Errorf("ping %s from %s: %w", dst, src, a.err)
	case a.at.Before(start):
		return 0, errAnsweredEarly
	}
	return a.at.Sub(start), nil
}

func listenICMP(h *lab.Host, src netip.Addr) (conn *icmp.PacketConn, err error) {
	err = h.Exec(func() error {
		conn, err = icmp.ListenPacket("ip4:icmp", src.String())
		return err
	})
	return conn, err
}

// sendPings closes sent after the first request. What cannot be sent now may
// be at the next tick.
func sendPings(ctx context.Context, conn *icmp.PacketConn, dst netip.Addr, sent chan<- struct{}) {
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	for seq := 0; ; seq++ {
		request := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: pingID, Seq: seq & 0xffff, Data: []byte("bodkin")}}
		if packet, err := request.Marshal(nil); err == nil {
			_, _ = conn.WriteTo(packet, &net.IPAddr{IP: dst.AsSlice()})
		}
		if seq == 0 {
			close(sent)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// firstAnswer returns when the first echo reply from dst came.
func firstAnswer(conn *icmp.PacketConn, dst netip.Addr) (time.Time, error) {
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return time.Time{}, fmt.Errorf("no answer within %s: %w", firstPingTimeout, err)
		}
		at := time.Now()
		message, err := icmp.ParseMessage(ipv4.ICMPTypeEcho.Protocol(), buf[:n])
		if err != nil || message.Type != ipv4.ICMPTypeEchoReply || from.String() != dst.String() {
			continue
		}
		if echo, ok := message.Body.(*icmp.Echo); ok && echo.ID == pingID {
			return at, nil
		}
	}
}
