package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// clientTimeout bounds one request to a daemon on this machine.
const clientTimeout = 10 * time.Second

// call sends one request over a daemon's unix socket and decodes the JSON
// answer into out, if that is not nil. The path is escaped already.
func call(ctx context.Context, socket, what, method, path string, query url.Values, body []byte, out any) error {
	client := http.Client{
		Timeout: clientTimeout,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
		},
	}
	u, err := url.Parse("http://bodkin" + path)
	if err != nil {
		return err
	}
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok {
			return fmt.Errorf("%s does not answer on %s: %w: is it running, and may you use its socket?", what, socket, op.Err)
		}
		return fmt.Errorf("%s: %w", what, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if resp.StatusCode/100 != 2 {
		return refusal(what, resp.StatusCode, b)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// refusal is the daemon's own words; what the client got wrong is a usage error.
func refusal(what string, status int, body []byte) error {
	var e struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &e) != nil || e.Error == "" {
		e.Error = fmt.Sprintf("%s: %s", what, http.StatusText(status))
	}
	err := errors.New(e.Error)
	if status == http.StatusUnprocessableEntity || status == http.StatusBadRequest {
		return usageError{err}
	}
	return err
}
