package rendezvous

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	// streamPause is how often a stream that has nothing to say is heard of, so
	// that proxies keep it; 30 s is what the impatient of them wait.
	streamPause = 15 * time.Second
	// streamWrite bounds one write to a reader that does not read.
	streamWrite = 10 * time.Second
	// maxStreams bounds the readers: each is a connection and a goroutine.
	maxStreams = 200
)

// streamer serves events as they happen (server-sent events, the WHATWG's HTML
// standard section 9.2).
type streamer struct {
	log   *eventLog
	open  atomic.Int32
	pause time.Duration // streamPause
}

// stream follows the events after an ID. may tells whether the reader may still
// read: a credential that is withdrawn ends the stream.
func (s *streamer) stream(w http.ResponseWriter, r *http.Request, filter eventFilter, after uint64, may func() bool) {
	if s.open.Add(1) > maxStreams {
		s.open.Add(-1)
		w.Header().Set("Retry-After", strconv.Itoa(int(streamPause.Seconds())))
		fail(w, r, http.StatusServiceUnavailable, fmt.Sprintf("%d streams are open already: close some", maxStreams))
		return
	}
	defer s.open.Add(-1)
	out := http.NewResponseController(w)
	_ = out.SetReadDeadline(time.Time{}) // the request's, which would end the stream
	w.Header().Set("Content-Type", "text/event-stream")
	write := func(text string) bool {
		// Without deadlines, as in tests, there is nobody who is slow.
		_ = out.SetWriteDeadline(time.Now().Add(streamWrite))
		_, err := w.Write([]byte(text))
		return err == nil && out.Flush() == nil
	}
	// The connection may be used again.
	defer func() { _ = out.SetWriteDeadline(time.Time{}) }()
	pause := time.NewTicker(s.pause)
	defer pause.Stop()
	text := ": bodkin\n\n" // so that the reader knows at once that it is connected
	for {
		events, grown := s.log.since(after)
		for _, e := range events {
			after = e.ID
			if filter.lets(e) {
				text += frameOf(e)
			}
		}
		if text != "" && !write(text) {
			return
		}
		text = ""
		select {
		case <-grown:
		case <-pause.C:
			if !may() {
				return
			}
			text = ":\n\n"
		case <-s.log.closed:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// frameOf is an event as it is sent: one line of JSON has no line break.
func frameOf(e EventView) string {
	b, _ := json.Marshal(e) // strings and numbers always marshal
	return fmt.Sprintf("id: %d\ndata: %s\n\n", e.ID, b)
}

// streamRequest is what a request for the stream asks for.
func streamRequest(r *http.Request, last uint64) (filter eventFilter, after uint64, err error) {
	if filter, err = eventQuery(r); err != nil {
		return filter, 0, err
	}
	// A browser that comes back says where it was; that is newer than the address.
	for _, text := range []string{r.Header.Get("Last-Event-ID"), r.URL.Query().Get("after")} {
		if text == "" {
			continue
		}
		after, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return filter, 0, fmt.Errorf("%w: after: %.30q is no event's ID", errInvalid, text)
		}
		return filter, after, nil
	}
	return filter, last, nil
}

// handler is the answer to GET /api/v1/events/stream.
func (s *streamer) handler(r *http.Request) (http.Handler, error) {
	filter, after, err := streamRequest(r, s.log.lastID())
	if err != nil {
		return nil, err
	}
	may := stillMay(r.Context())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.stream(w, r, filter, after, may) }), nil
}
