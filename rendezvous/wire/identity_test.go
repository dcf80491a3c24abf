package wire

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"testing"
	"time"
)

// certificate makes a real one and reads it back, as TLS would.
func certificate(t *testing.T, subject pkix.RDNSequence, dnsNames ...string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := asn1.Marshal(subject)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), RawSubject: raw, DNSNames: dnsNames,
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func rdn(kv ...any) pkix.RelativeDistinguishedNameSET {
	var set pkix.RelativeDistinguishedNameSET
	for i := 0; i < len(kv); i += 2 {
		set = append(set, pkix.AttributeTypeAndValue{Type: kv[i].(asn1.ObjectIdentifier), Value: kv[i+1]})
	}
	return set
}

var (
	oidC     = asn1.ObjectIdentifier{2, 5, 4, 6}
	oidO     = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidOU    = asn1.ObjectIdentifier{2, 5, 4, 11}
	oidL     = asn1.ObjectIdentifier{2, 5, 4, 7}
	oidST    = asn1.ObjectIdentifier{2, 5, 4, 8}
	oidCN    = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidTitle = asn1.ObjectIdentifier{2, 5, 4, 12}
	oidUID   = asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}
)

func TestIdentityOf(t *testing.T) {
	tests := []struct {
		name    string
		subject pkix.RDNSequence
		want    string
	}{
		{"FabEdge's", pkix.RDNSequence{rdn(oidC, "CN"), rdn(oidO, "fabedge.io"), rdn(oidCN, "beijing.edge1")},
			"C=CN, O=fabedge.io, CN=beijing.edge1"},
		{"the certificate's own order", pkix.RDNSequence{rdn(oidCN, "beijing.edge1"), rdn(oidO, "fabedge.io"), rdn(oidC, "CN")},
			"CN=beijing.edge1, O=fabedge.io, C=CN"},
		{"more attributes", pkix.RDNSequence{rdn(oidST, "Beijing"), rdn(oidL, "Haidian"), rdn(oidOU, "edge"), rdn(oidCN, "e")},
			"ST=Beijing, L=Haidian, OU=edge, CN=e"},
		{"one attribute twice", pkix.RDNSequence{rdn(oidOU, "a"), rdn(oidOU, "b"), rdn(oidCN, "e")}, "OU=a, OU=b, CN=e"},
		{"two attributes in one, sorted by DER", pkix.RDNSequence{rdn(oidO, "o", oidCN, "e")}, "CN=e, O=o"},
		{"attributes without a short name", pkix.RDNSequence{rdn(oidTitle, "x"), rdn(oidUID, "7"), rdn(oidCN, "e")},
			"2.5.4.12=x, 0.9.2342.19200300.100.1.1=7, CN=e"},
		{"no subject", pkix.RDNSequence{}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := IdentityOf(certificate(t, tt.subject)); err != nil || got != tt.want {
				t.Errorf("%q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestIdentityOfRefusesWhatIsNoName(t *testing.T) {
	for _, raw := range [][]byte{nil, {0x30}, {0x30, 0x00, 0x00}} {
		if id, err := IdentityOf(&x509.Certificate{RawSubject: raw}); err == nil {
			t.Errorf("%x: %q", raw, id)
		}
	}
}

func TestNameOf(t *testing.T) {
	tests := []struct {
		name string
		cn   string
		dns  []string
		want NodeName // empty for an error
	}{
		{"common name", "beijing.edge1", nil, "beijing.edge1"},
		{"SAN before common name", "Edge One", []string{"beijing.edge1"}, "beijing.edge1"},
		{"first SAN", "", []string{"beijing.edge1", "beijing.edge2"}, "beijing.edge1"},
		{"neither", "", nil, ""},
		{"common name that is no node's", "Edge One", nil, ""},
		{"a bad SAN is not made good by the common name", "beijing.edge1", []string{"*.beijing"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			subject := pkix.RDNSequence{rdn(oidO, "fabedge.io")}
			if tt.cn != "" {
				subject = append(subject, rdn(oidCN, tt.cn))
			}
			got, err := NameOf(certificate(t, subject, tt.dns...))
			if got != tt.want || (tt.want == "") != errors.Is(err, ErrInvalid) {
				t.Errorf("%q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestSameIdentity(t *testing.T) {
	const id = "C=CN, O=fabedge.io, CN=beijing.edge1"
	for other, want := range map[string]bool{
		"C=CN,O=fabedge.io,CN=beijing.edge1":      true,
		" C=CN ,  O=fabedge.io, CN=beijing.edge1": true,
		"C=CN, O=fabedge.io, CN=beijing.edge2":    false,
		"CN=beijing.edge1, O=fabedge.io, C=CN":    false,
		"C=CN, O=fabedge.io":                      false,
		"c=cn, o=fabedge.io, cn=beijing.edge1":    false,
		"C=CN, O=fabedge. io, CN=beijing.edge1":   false,
		"":                                        false,
	} {
		if SameIdentity(id, other) != want || SameIdentity(other, id) != want {
			t.Errorf("%q and %q: want %v", id, other, want)
		}
	}
}
