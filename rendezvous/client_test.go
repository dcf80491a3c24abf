package rendezvous

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// serveAdmin serves src on a unix socket until the test ends.
func serveAdmin(t *testing.T, src adminSource) *AdminClient {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: newAdminHandler(src, newMetrics())}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-served
	})
	return NewAdminClient(socket)
}

func TestAdminClient(t *testing.T) {
	src := sampleSource()
	c := serveAdmin(t, src)
	names, err := c.ApplyCommunities(t.Context(), "dir/a & b.yaml", strings.NewReader("kind: Community"))
	if err != nil || !reflect.DeepEqual(names, []string{"all-edges"}) || src.applied["dir/a & b.yaml"] != "kind: Community" {
		t.Errorf("apply: %q, %v; the server got %q", names, err, src.applied)
	}
	cs, err := c.Communities(t.Context())
	if err != nil || len(cs) != 1 || cs[0].Name != "all-edges" || cs[0].Source != "all-edges.yaml" {
		t.Errorf("get: %+v, %v", cs, err)
	}
	if err := c.DeleteCommunity(t.Context(), "all-edges"); err != nil || !reflect.DeepEqual(src.deleted, []string{"all-edges"}) {
		t.Errorf("delete: %v; the server got %q", err, src.deleted)
	}
}

func TestAdminClientPassesTheReasonOn(t *testing.T) {
	src := sampleSource()
	src.failing = fmt.Errorf("%w: community all-edges is kept in a file", ErrConflict)
	c := serveAdmin(t, src)
	_, err := c.ApplyCommunities(t.Context(), "a.yaml", strings.NewReader(""))
	if err == nil || err.Error() != src.failing.Error() {
		t.Errorf("apply: %v, want %v", err, src.failing)
	}
}

func TestAdminClientWithoutRendezvous(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none.sock")
	_, err := NewAdminClient(socket).Communities(t.Context())
	if err == nil || !strings.HasPrefix(err.Error(), "no rendezvous at "+socket+": start it") {
		t.Errorf("error %v, want one that names the socket", err)
	}
}
