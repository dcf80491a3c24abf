package charon

import (
	"errors"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
)

// A peer whose certificate is on the CRL is refused in IKE, in both directions, and
// is welcome again when a newer list lacks it. Keys and subjects are those of the
// rendezvous' own CA.
func TestRevokedPeer(t *testing.T) {
	ctx := testContext(t)
	now := time.Now()
	ca, err := pki.NewCA(now)
	must(t, err)
	serials := map[string]string{}
	issue := func(name string) Credentials {
		key, err := pki.NewKey()
		must(t, err)
		keyPEM, err := pki.EncodeKey(key)
		must(t, err)
		cert, err := ca.Node(now, name, key.Public(), time.Hour)
		must(t, err)
		serials[name] = pki.Serial(cert)
		return Credentials{CertPEM: pki.EncodeCertificate(cert.Raw), KeyPEM: keyPEM, CAPEMs: [][]byte{pki.EncodeCertificate(ca.Certificate.Raw)}}
	}
	crl := func(number uint64, nodes ...string) []byte {
		var revoked []pki.Revoked
		for _, n := range nodes {
			revoked = append(revoked, pki.Revoked{Serial: serials[n], At: now})
		}
		der, err := ca.CRL(now.Add(time.Duration(number)*time.Second), time.Hour, number, revoked)
		must(t, err)
		return der
	}

	p := &pair{}
	p.a, p.b = newPair(t)
	p.a.start()
	p.b.start()
	p.ca, p.cb = p.a.client(), p.b.client()
	credsA, credsB := issue(nodeNames["a"]), issue(nodeNames["b"])
	must(t, p.ca.LoadCredentials(ctx, credsA))
	must(t, p.cb.LoadCredentials(ctx, credsB))
	p.connA, p.connB = p.a.connection(p.b, credsA), p.b.connection(p.a, credsB)
	for _, c := range []*Connection{&p.connA, &p.connB} {
		c.ESPProposals = espProposals(t, ctx, p.ca)
	}
	p.connA.LocalID, p.connA.RemoteID = "O=bodkin, CN="+nodeNames["a"], "O=bodkin, CN="+nodeNames["b"]
	p.connB.LocalID, p.connB.RemoteID = p.connA.RemoteID, p.connA.LocalID
	p.load(t, ctx)

	// try has the pair set up from a's side.
	try := func() error {
		m, err := section{{"ike", p.connA.Name}, {"child", p.connA.Children[0].Name}}.message()
		must(t, err)
		return p.ca.simple(ctx, "initiate", m)
	}
	end := func() {
		must(t, p.ca.Terminate(ctx, p.connA.Name))
		waitEvent(t, p.cb, "the tunnel has ended", func(e Event) bool { return e.Kind == EventIKEDown })
	}
	for _, step := range []struct {
		what    string
		at      *Client
		crl     []byte
		refused bool
	}{
		{"an empty list", p.cb, crl(1), false},
		{"the initiator is on the responder's list", p.cb, crl(2, nodeNames["a"]), true},
		{"an older list changes nothing", p.cb, crl(1), true},
		{"a newer list lacks it", p.cb, crl(3), false},
		{"the responder is on the initiator's list", p.ca, crl(4, nodeNames["b"]), true},
	} {
		must(t, step.at.LoadCRL(ctx, step.crl))
		switch err := try(); {
		case step.refused && !errors.Is(err, ErrRefused):
			t.Fatalf("%s: %v; want ErrRefused", step.what, err)
		case !step.refused && err != nil:
			t.Fatalf("%s: %v", step.what, err)
		case !step.refused:
			end()
		}
	}
	if err := p.cb.LoadCRL(ctx, []byte("no list")); !errors.Is(err, ErrRefused) {
		t.Errorf("what is no list: %v; want ErrRefused", err)
	}
}
