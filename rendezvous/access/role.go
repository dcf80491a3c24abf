// Package access decides who a request to the rendezvous' API and page is from,
// and what they may do.
package access

// Role is what somebody may do.
type Role string

// Roles, each of which may do what the one before it may.
const (
	Nobody Role = ""
	Viewer Role = "viewer" // reads everything but secrets, changes nothing
	Admin  Role = "admin"
)

var rank = map[Role]int{Nobody: 0, Viewer: 1, Admin: 2}

// Permits reports whether somebody of role r may do what asks for need.
func (r Role) Permits(need Role) bool { return rank[r] >= rank[need] }
