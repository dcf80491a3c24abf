package rendezvous

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"
)

// adminTimeout bounds one command on the admin socket: the hub answers in
// milliseconds, a store on a busy disk in seconds.
const adminTimeout = 15 * time.Second

// AdminClient speaks to a running rendezvous over its unix socket. It is safe
// for concurrent use.
type AdminClient struct {
	socket string
	http   http.Client
}

// NewAdminClient returns a client of the rendezvous that listens on socket,
// the adminSocket of its configuration. Nothing is opened yet.
func NewAdminClient(socket string) *AdminClient {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &AdminClient{socket: socket, http: http.Client{
		Timeout: adminTimeout,
		// A command asks once: an idle connection would only outlive it.
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
	}}
}

// ApplyCommunities puts the communities of a file in force, all of them or on
// error none, and returns their names. file is its name in messages.
func (c *AdminClient) ApplyCommunities(ctx context.Context, file string, r io.Reader) ([]string, error) {
	var out AppliedCommunities
	err := c.do(ctx, http.MethodPut, "/api/v1/communities?file="+url.QueryEscape(file), r, &out)
	return out.Applied, err
}

// Communities returns all communities, by name.
func (c *AdminClient) Communities(ctx context.Context) ([]CommunityView, error) {
	var out CommunityList
	err := c.do(ctx, http.MethodGet, "/api/v1/communities", nil, &out)
	return out.Communities, err
}

// DeleteCommunity removes a community that was applied.
func (c *AdminClient) DeleteCommunity(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, "/api/v1/communities/"+url.PathEscape(name), nil, nil)
}

// do sends one request; out may be nil. The API's own errors are sentences for
// the operator and come back as they are.
func (c *AdminClient) do(ctx context.Context, method, path string, body io.Reader, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://rendezvous"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		var refused apiError
		if json.NewDecoder(resp.Body).Decode(&refused) != nil || refused.Error == "" {
			return fmt.Errorf("rendezvous at %s: %s to %s %s", c.socket, resp.Status, method, path)
		}
		return errors.New(refused.Error)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("rendezvous at %s: answer to %s %s: %w", c.socket, method, path, err)
	}
	return nil
}

// unreachable says what to look at, since the three usual causes differ.
func (c *AdminClient) unreachable(err error) error {
	// Of "Put "http://rendezvous/…": dial unix …" only the end tells something.
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no rendezvous at %s: start it, or give the adminSocket of its configuration: %w", c.socket, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission for %s: run as root or as a member of its group: %w", c.socket, err)
	}
	return fmt.Errorf("rendezvous at %s: %w", c.socket, err)
}
