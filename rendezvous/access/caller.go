package access

import "context"

// Caller is whom a request is from.
type Caller struct {
	// Who is a credential's name, or how somebody without one came in.
	Who string
	// From is the address, empty for the unix socket.
	From string
	Role Role
}

// Callers that have no credential.
var (
	// Socket may open the admin socket: the file's permission says who that is.
	Socket = Caller{Who: "unix socket", Role: Admin}
	// Rendezvous is the rendezvous itself, such as when it reads a file.
	Rendezvous = Caller{Who: "rendezvous", Role: Admin}
)

// loopback is who asks on a loopback address and shows no credential.
const loopback = "loopback"

type callerKey struct{}

// WithCaller is ctx with the caller in it.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerOf is the caller that WithCaller has put into a request's context. Without
// one it is nobody.
func CallerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}
