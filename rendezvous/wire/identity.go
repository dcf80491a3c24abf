package wire

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"strings"
)

// NameOf is the node a certificate speaks for: its first DNS name, else the
// common name of its subject.
func NameOf(cert *x509.Certificate) (NodeName, error) {
	name := NodeName(cert.Subject.CommonName)
	if len(cert.DNSNames) > 0 {
		name = NodeName(cert.DNSNames[0])
	}
	if err := name.Validate(); err != nil {
		return "", fmt.Errorf("certificate (SAN DNS, else CN): %w", err)
	}
	return name, nil
}

// attributeNames are the short names strongSwan prints, by the last arc of
// X.520's 2.5.4.x.
var attributeNames = map[int]string{3: "CN", 4: "SN", 5: "serialNumber", 6: "C", 7: "L", 8: "ST", 10: "O", 11: "OU"}

// IdentityOf is the subject as an IKE identity in strongSwan's notation, the
// attributes in the certificate's own order: "C=CN, O=fabedge.io, CN=beijing.edge1".
func IdentityOf(cert *x509.Certificate) (string, error) {
	var rdns pkix.RDNSequence
	if rest, err := asn1.Unmarshal(cert.RawSubject, &rdns); err != nil || len(rest) > 0 {
		return "", fmt.Errorf("certificate subject is not a distinguished name")
	}
	var parts []string
	for _, set := range rdns {
		for _, a := range set {
			name, ok := "", false
			if len(a.Type) == 4 && a.Type[:3].Equal(asn1.ObjectIdentifier{2, 5, 4}) {
				name, ok = attributeNames[a.Type[3]]
			}
			if !ok {
				name = a.Type.String()
			}
			parts = append(parts, fmt.Sprintf("%s=%v", name, a.Value))
		}
	}
	return strings.Join(parts, ", "), nil
}

// SameIdentity compares two identities regardless of the blanks after commas.
func SameIdentity(a, b string) bool {
	return normalise(a) == normalise(b)
}

func normalise(id string) string {
	parts := strings.Split(id, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return strings.Join(parts, ",")
}
