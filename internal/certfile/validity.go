package certfile

import (
	"crypto/x509"
	"fmt"
	"time"
)

// A certificate's end is announced notice before it, or when the last share-th of
// its life has begun, whichever is later.
const (
	notice = 30 * 24 * time.Hour
	share  = 3
)

// Validity is what can be said of a certificate's time.
type Validity string

// Validities.
const (
	Valid       Validity = ""
	EndsSoon    Validity = "ends soon"
	Expired     Validity = "expired"
	NotYetValid Validity = "not valid yet"
)

// ValidityOf judges by the wall clock, as the peers do.
func ValidityOf(leaf *x509.Certificate, now time.Time) Validity {
	left, life := leaf.NotAfter.Sub(now), leaf.NotAfter.Sub(leaf.NotBefore)
	switch {
	case left < 0:
		return Expired
	case now.Before(leaf.NotBefore):
		return NotYetValid
	case left < min(notice, life/share):
		return EndsSoon
	}
	return Valid
}

// Holds reports whether the certificate is good at the moment.
func (v Validity) Holds() bool { return v == Valid || v == EndsSoon }

// Explain says what a validity means and what to do, empty for Valid. effect is
// what follows for whoever uses it from its not being good.
func (v Validity) Explain(leaf *x509.Certificate, now time.Time, effect string) string {
	clock := now.UTC().Format(time.DateTime)
	switch from, to := leaf.NotBefore.UTC().Format(time.DateTime), leaf.NotAfter.UTC().Format(time.DateTime); v {
	case EndsSoon:
		return fmt.Sprintf("the certificate expires on %s: issue a new one and replace the files", to)
	case Expired:
		return fmt.Sprintf("the certificate expired on %s, and this machine's clock says %s: %s: issue a new one and replace the files",
			to, clock, effect)
	case NotYetValid:
		return fmt.Sprintf("the certificate is not valid before %s, and this machine's clock says %s: %s: set the clock", from, clock, effect)
	}
	return ""
}
