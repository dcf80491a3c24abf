package lab

import (
	"container/heap"
	"sync"
	"time"
)

// maxQueued bounds the packets under way at one time, as router buffers do;
// at 1500 bytes each it is about 100 MB.
const maxQueued = 1 << 16

// delayQueue hands each packet over when it is due, and packets due at the
// same instant in the order they came. Its run goroutine is the only one that
// takes packets out; anyone may put them in.
type delayQueue struct {
	mu      sync.Mutex
	packets packetHeap
	seq     uint64
	closed  bool
	wake    chan struct{} // a packet became the earliest, or the queue closed
	done    chan struct{}
}

type queuedPacket struct {
	due  time.Time
	seq  uint64
	to   *attachment
	data []byte
}

func newDelayQueue() *delayQueue {
	q := &delayQueue{wake: make(chan struct{}, 1), done: make(chan struct{})}
	go q.run()
	return q
}

// put copies data, so that the caller may reuse its buffer. A full queue
// drops the packet.
func (q *delayQueue) put(due time.Time, to *attachment, data []byte) {
	q.mu.Lock()
	if q.closed || len(q.packets) >= maxQueued {
		q.mu.Unlock()
		return
	}
	q.seq++
	heap.Push(&q.packets, queuedPacket{due: due, seq: q.seq, to: to, data: append([]byte(nil), data...)})
	first := q.packets[0].seq == q.seq
	q.mu.Unlock()
	if first {
		q.signal()
	}
}

func (q *delayQueue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// close drops what is still queued and waits for run to end.
func (q *delayQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
	<-q.done
}

func (q *delayQueue) run() {
	defer close(q.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		due, wait, closed := q.take(time.Now())
		if closed {
			return
		}
		for _, p := range due {
			p.to.deliver(p.data)
		}
		if len(due) > 0 {
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-q.wake:
		}
	}
}

// take removes the packets due at now; when there are none it says how long
// the earliest has to wait.
func (q *delayQueue) take(now time.Time) (due []queuedPacket, wait time.Duration, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.packets) > 0 && !q.packets[0].due.After(now) {
		due = append(due, heap.Pop(&q.packets).(queuedPacket))
	}
	wait = time.Hour
	if len(q.packets) > 0 {
		wait = q.packets[0].due.Sub(now)
	}
	return due, wait, q.closed
}

// packetHeap orders by due time, then by arrival.
type packetHeap []queuedPacket

func (h packetHeap) Len() int { return len(h) }
func (h packetHeap) Less(i, j int) bool {
	if h[i].due.Equal(h[j].due) {
		return h[i].seq < h[j].seq
	}
	return h[i].due.Before(h[j].due)
}
func (h packetHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *packetHeap) Push(x any)   { *h = append(*h, x.(queuedPacket)) }
func (h *packetHeap) Pop() any {
	last := len(*h) - 1
	p := (*h)[last]
	(*h)[last] = queuedPacket{}
	*h = (*h)[:last]
	return p
}
