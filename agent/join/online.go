package join

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/internal/pki"
)

// ErrNotOnline marks that the machine has joined, and its agent is not online yet.
var ErrNotOnline = errors.New("joined, but not online yet")

const (
	// onlinePoll is between looks at the agent's status, which cost it nothing.
	onlinePoll = 50 * time.Millisecond
	// statusTimeout bounds one look.
	statusTimeout = 5 * time.Second
	// patientFor is how long something may take until it is said what is waited
	// for: an agent is online within a second.
	patientFor = 2 * time.Second
)

func (j *joining) startService(ctx context.Context) (string, error) {
	if j.Service == nil {
		return "left alone: start the agent with: bodkin agent --config " + j.files.Config, nil
	}
	return j.Service.Start(ctx)
}

// waitOnline waits for the agent to be online, and says what it waits for.
func (j *joining) waitOnline(ctx context.Context) (string, error) {
	if j.Wait == 0 {
		return "", nil
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, j.Wait)
	defer cancel()
	ticker := time.NewTicker(onlinePoll)
	defer ticker.Stop()
	said := ""
	for {
		status, err := agentStatus(ctx, j.Socket)
		missing := lacks(status, err, j.issued.Certificate, j.Socket)
		if missing == "" {
			j.status = status
			return onlineText(status, time.Since(began)), nil
		}
		if missing != said && time.Since(began) >= patientFor {
			j.tell(Told{StepOnline, Waiting, missing})
			said = missing
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return "", fmt.Errorf("%w after %s: %s", ErrNotOnline, time.Since(began).Round(time.Second), missing)
		}
	}
}

// lacks is what an agent lacks to be online, empty if nothing.
func lacks(s *agent.Status, err error, certificate, socket string) string {
	switch {
	case err != nil:
		return fmt.Sprintf("the agent does not answer on %s: is it started?", socket)
	case !usesCertificate(s, certificate):
		return "the agent uses the certificate that it had before: it takes the new one within a minute"
	case !s.Rendezvous.Connected:
		return "the rendezvous: " + s.Rendezvous.Error
	case !s.Mapped.IsValid() && s.NAT.Blocked == "":
		return "the rendezvous has not seen a UDP packet from here yet"
	}
	return ""
}

func onlineText(s *agent.Status, took time.Duration) string {
	text := fmt.Sprintf("%s is online after %.1f s", s.Node, took.Seconds())
	if s.Mapped.IsValid() {
		text += ", seen at " + s.Mapped.String()
	}
	return text
}

func agentStatus(ctx context.Context, socket string) (*agent.Status, error) {
	client := http.Client{Timeout: statusTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://bodkin/v1/status", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	var s agent.Status
	return &s, json.NewDecoder(resp.Body).Decode(&s)
}

// usesCertificate reports whether an agent proves itself with a certificate.
func usesCertificate(s *agent.Status, certificate string) bool {
	cert, err := pki.ParseCertificate([]byte(certificate))
	return err == nil && s.Certificate.Serial == cert.SerialNumber.Text(16)
}
