package rendezvous

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

func idsOf(events []EventView) (ids []uint64) {
	for _, e := range events {
		ids = append(ids, e.ID)
	}
	return ids
}

func TestEventRing(t *testing.T) {
	l := newEventLog(nil)
	if l.lastID() != 0 || len(l.newest()) != 0 {
		t.Error("an empty log has events")
	}
	const all = 3*ringSize + 7
	for i := range all {
		l.add(sampleNow, EventView{Kind: EventNode, Text: fmt.Sprint(i)})
	}
	got := l.newest()
	if len(got) != ringSize || got[0].ID != all || got[ringSize-1].ID != all-ringSize+1 || got[0].At.Location() != time.UTC {
		t.Errorf("%d events from %d to %d", len(got), got[0].ID, got[len(got)-1].ID)
	}
	for _, tt := range []struct {
		after uint64
		want  int
	}{{all, 0}, {all - 1, 1}, {all - ringSize, ringSize}, {1, ringSize}, {0, ringSize}, {all + 5, ringSize}} {
		if events, _ := l.since(tt.after); len(events) != tt.want || !slices.IsSorted(idsOf(events)) {
			t.Errorf("after %d: %d events, want %d", tt.after, len(events), tt.want)
		}
	}
	events, grown := l.since(all)
	select {
	case <-grown:
		t.Error("grown without an event")
	default:
	}
	l.add(sampleNow, EventView{})
	<-grown
	if len(events) != 0 {
		t.Error("what was returned has changed")
	}
}

// IDs go on after a restart, and what was not stored in time is not stored twice.
func TestEventsAreStored(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	open := func() *store.Store {
		s, err := store.Open(path, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	s := open()
	l := newEventLog(nil)
	saved := 0
	l.save = func() { saved++ }
	l.add(sampleNow, EventView{Kind: EventPair, Pair: both12, State: "direct", Cell: "d", Text: "direct"})
	l.add(sampleNow, EventView{Kind: EventNode, Node: edge1, State: "online", Text: "online"})
	for range 2 {
		if err := l.write(s); err != nil {
			t.Fatal(err)
		}
	}
	stored, err := s.Events(0)
	if err != nil || len(stored) != 2 || saved != 2 {
		t.Fatalf("%+v, %v, saved %d times", stored, err, saved)
	}
	next := newEventLog(stored)
	next.add(sampleNow, EventView{Kind: EventNode, Node: edge1, State: "offline", Text: "offline"})
	if got := idsOf(next.newest()); !slices.Equal(got, []uint64{3, 2, 1}) {
		t.Errorf("after a restart: %v", got)
	}
	// A reader that has seen more than was stored sees all of this run.
	if events, _ := next.since(9); !slices.Equal(idsOf(events), []uint64{3}) {
		t.Errorf("%v", idsOf(events))
	}
	// A store that fails loses nothing.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := next.write(s); err == nil {
		t.Error("written to a closed store")
	}
	next.add(sampleNow, EventView{})
	s = open()
	if err := next.write(s); err != nil {
		t.Fatal(err)
	}
	if stored, err := s.Events(0); err != nil || len(stored) != 4 || stored[0].ID != 4 {
		t.Errorf("%+v, %v", stored, err)
	}
}

func TestEventFilter(t *testing.T) {
	ring := []EventView{
		{ID: 4, Kind: EventPair, Pair: wire.NewPairID("a.x", "b.x")}, {ID: 3, Kind: EventNode, Node: "a.x"},
		{ID: 2, Kind: EventPair, Pair: wire.NewPairID("b.x", "c.x")}, {ID: 1, Kind: EventChange},
	}
	never := func() ([]store.Event, error) { return nil, errors.New("asked the store in vain") }
	for _, tt := range []struct {
		query string
		want  []uint64
	}{
		{"", []uint64{4, 3, 2, 1}}, {"limit=2", []uint64{4, 3}}, {"node=a.x", []uint64{4, 3}},
		{"pair=c.x|b.x", []uint64{2}}, {"node=c.x&limit=1", []uint64{2}}, {"node=d.x", nil},
	} {
		f, err := eventQuery(httptest.NewRequest(http.MethodGet, "/?"+tt.query, nil))
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.find(ring, never)
		if err != nil || !slices.Equal(idsOf(got), tt.want) {
			t.Errorf("%s: %v, %v; want %v", tt.query, idsOf(got), err, tt.want)
		}
	}
	for _, query := range []string{"limit=x", "limit=-1", "pair=a.x", "pair=|a.x"} {
		if _, err := eventQuery(httptest.NewRequest(http.MethodGet, "/?"+query, nil)); !errors.Is(err, errInvalid) {
			t.Errorf("%s: %v", query, err)
		}
	}
	// What the ring no longer has is taken from the store.
	full := newEventLog(nil)
	var stored []store.Event
	for i := range 2 * ringSize {
		full.add(sampleNow, EventView{Text: fmt.Sprint(i)})
		stored = append(stored, store.Event{ID: uint64(i + 1)})
	}
	slices.Reverse(stored)
	got, err := eventFilter{limit: ringSize + 3}.find(full.newest(), func() ([]store.Event, error) { return stored, nil })
	if err != nil || len(got) != ringSize+3 || got[ringSize].ID != ringSize || got[ringSize+2].ID != ringSize-2 {
		t.Errorf("%d events, %v", len(got), err)
	}
}

// stream is a reader of server-sent events.
type stream struct {
	t    *testing.T
	resp *http.Response
	in   *bufio.Scanner
}

func (r *running) stream(client *http.Client, base, query string, change func(*http.Request)) *stream {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), testWait)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/api/v1/events/stream"+query, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if change != nil {
		change(req)
	}
	resp, err := client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { cancel(); resp.Body.Close() })
	return &stream{r.t, resp, bufio.NewScanner(resp.Body)}
}

// next is the next line that is not empty, "" at the end.
func (s *stream) next() string {
	for s.in.Scan() {
		if s.in.Text() != "" {
			return s.in.Text()
		}
	}
	return ""
}

// event reads up to the next event.
func (s *stream) event() (id, data string) {
	s.t.Helper()
	for line := s.next(); line != ""; line = s.next() {
		if text, ok := strings.CutPrefix(line, "id: "); ok {
			id = text
		}
		if text, ok := strings.CutPrefix(line, "data: "); ok {
			return id, text
		}
	}
	s.t.Fatalf("the stream ended: %v", s.in.Err())
	return "", ""
}

func TestStream(t *testing.T) {
	r := newSite(t).start()
	base := "http://" + r.server.status.Addr().String()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	one := r.stream(client, base, "", nil)
	if ct := one.resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("Content-Type %q", ct)
	}
	if line := one.next(); line != ": bodkin" {
		t.Errorf("first line %q", line)
	}
	all, pairs := r.stream(client, base, "", nil), r.stream(client, base, "?pair="+string(edge2)+"|"+string(edge1), nil)
	all.next() // it is there
	pairs.next()
	r.apply(community("all", edge1, edge2))
	r.join(edge1)

	id, data := all.event()
	for !strings.Contains(data, `"kind":"node"`) || !strings.Contains(data, `"node":"beijing.edge1"`) {
		id, data = all.event()
	}
	if _, data := pairs.event(); !strings.Contains(data, `"pair":"beijing.edge1|beijing.edge2"`) || !strings.Contains(data, `"cell":"x"`) {
		t.Errorf("of the pair: %s", data)
	}
	r.until("offline is known", func(s Snapshot) bool { return nodeIn(s, edge1).Online })
	// A browser that comes back goes on where it was.
	again := r.stream(client, base, "?after=0", func(req *http.Request) { req.Header.Set("Last-Event-ID", id) })
	r.join(edge2)
	nextID, _ := again.event()
	if want, _ := all.event(); nextID != want {
		t.Errorf("went on with %s, want %s", nextID, want)
	}
	from := r.stream(client, base, "?after=0", nil)
	if id, _ := from.event(); id != "1" {
		t.Errorf("from the beginning: %s", id)
	}
	if code, body, _ := try(t, client, "GET", base+"/api/v1/events/stream?after=x", "", nil); code != 422 || !strings.Contains(body, "no event's ID") {
		t.Errorf("%d %s", code, body)
	}
	// The end of the rendezvous ends streams at once: nobody waits for the timeout
	// of requests that take long.
	streams := []*stream{one, all, pairs, again, from}
	ends := make(chan error)
	for _, s := range streams {
		go func() {
			for s.next() != "" { // up to the end
			}
			ends <- s.in.Err()
		}()
	}
	begin := time.Now()
	go func() {
		for range streams {
			if err := <-ends; err != nil {
				t.Errorf("a stream broke: %v", err)
			}
		}
		close(ends)
	}()
	r.stop()
	if took := time.Since(begin); took > shutdownTimeout {
		t.Errorf("stopping took %s with streams open", took)
	}
	<-ends
}

// A stream says something now and then, ends with the credential of its reader, and
// there are only so many.
func TestStreamEnds(t *testing.T) {
	l := newEventLog(nil)
	s := &streamer{log: l, pause: time.Millisecond}
	may := make(chan bool)
	done := make(chan struct{})
	w := httptest.NewRecorder()
	go func() {
		defer close(done)
		s.stream(w, httptest.NewRequest(http.MethodGet, "/", nil), eventFilter{}, 0, func() bool { return <-may })
	}()
	may <- true
	may <- true
	may <- false
	<-done
	if got := w.Body.String(); got != ": bodkin\n\n:\n\n:\n\n" {
		t.Errorf("%q", got)
	}
	s.open.Store(maxStreams)
	w = httptest.NewRecorder()
	s.stream(w, httptest.NewRequest(http.MethodGet, "/api/v1/events/stream", nil), eventFilter{}, 0, nil)
	if w.Code != 503 || !strings.Contains(w.Body.String(), "200 streams are open") || s.open.Load() != maxStreams {
		t.Errorf("%d %s, %d open", w.Code, w.Body, s.open.Load())
	}
}

// A credential that is withdrawn ends its streams at the next pause.
func TestStreamEndsWithCredential(t *testing.T) {
	r, c, base := startPublic(t)
	r.server.streams.pause = 10 * time.Millisecond
	s := r.stream(c, base, "", withBearer(r.credential("grafana", access.Viewer)))
	s.next()
	r.operate("DELETE", "/api/v1/access/grafana", nil, nil)
	for s.next() != "" { // up to the end
	}
	if err := s.in.Err(); err != nil {
		t.Errorf("the stream broke: %v", err)
	}
}

func TestHours(t *testing.T) {
	at := time.Date(2024, 5, 17, 14, 59, 0, 0, time.UTC)
	h := newHours([]store.Hour{{Start: at.Add(-25 * time.Hour).Truncate(time.Hour), Direct: 9}, {Start: at.Add(-3 * time.Hour).Truncate(time.Hour), Failed: 1}})
	h.count(at, AttemptDirect, 90*time.Millisecond)
	h.count(at, AttemptDirect, 200*time.Millisecond)
	h.count(at, AttemptDirect, 12*time.Second)
	hour := h.count(at, AttemptFailed, 0)
	if want := (store.Hour{Start: at.Truncate(time.Hour), Direct: 3, Failed: 1, TimeToDirect: []int{1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}}); !reflect.DeepEqual(hour, want) {
		t.Errorf("%+v, want %+v", hour, want)
	}
	h.count(at.Add(time.Minute), AttemptFailed, 0)
	var o Overview
	h.describe(&o, at.Add(time.Minute))
	if len(o.Hours) != 24 || !o.Hours[23].Start.Equal(at.Add(time.Minute)) || o.Hours[23].Failed != 1 || o.Hours[22].Direct != 3 || o.Hours[19].Failed != 1 || o.Hours[0].Direct != 0 {
		t.Errorf("hours %+v", o.Hours)
	}
	if o.SuccessRate == nil || *o.SuccessRate != 0.5 {
		t.Errorf("success rate %v", o.SuccessRate)
	}
	if d := o.TimeToDirect; d.MedianMs != 200 || d.P95Ms != 10_000 || len(d.Counts) != len(d.LeMs)+1 || d.Counts[11] != 1 {
		t.Errorf("%+v", d)
	}
	var empty Overview
	newHours(nil).describe(&empty, at)
	if empty.SuccessRate != nil || empty.TimeToDirect.MedianMs != 0 || len(empty.Hours) != 24 {
		t.Errorf("of nothing: %+v", empty)
	}
	for i, le := range timeToDirectMs {
		if bucketOf(time.Duration(le)*time.Millisecond) != i || bucketOf(time.Duration(le+1)*time.Millisecond) != i+1 {
			t.Errorf("bucket of %d ms", le)
		}
	}
}
