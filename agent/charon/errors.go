package charon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
)

// The errors a caller can act on. Everything this package returns wraps one of
// them, a context error, or says what is wrong with the caller's own input.
var (
	// ErrUnreachable: charon's VICI socket cannot be reached, or closed in the
	// middle of a command. It heals when charon comes back.
	ErrUnreachable = errors.New("charon is not reachable")

	// ErrTimeout: charon accepted the command and did not answer within
	// Options.Timeout. Whether it carried the command out is not known.
	ErrTimeout = errors.New("charon did not answer in time")

	// ErrRefused: charon answered, and the answer is no. The text is charon's.
	ErrRefused = errors.New("charon refused")

	// ErrNotFound: charon has no connection or SA of that name.
	ErrNotFound = errors.New("charon has no such thing")

	// ErrInvalid: the connection or credentials cannot be given to charon.
	ErrInvalid = errors.New("invalid")

	// ErrClosed: Run has returned, or its context ended during the call.
	ErrClosed = errors.New("charon client is closed")
)

// dialError puts a failed dial into the words of what an operator can do.
func dialError(socket string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = ": is strongSwan running and its vici plugin loaded?"
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = ": the socket is left over, charon is not running"
	case errors.Is(err, fs.ErrPermission):
		hint = ": it belongs to root unless charon.plugins.vici and charon.group say otherwise"
	}
	// The path is named once, so the *net.OpError around the cause is left out.
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	return fmt.Errorf("%w: VICI socket %s: %w%s", ErrUnreachable, socket, err, hint)
}

// exchangeError says why a command got no answer.
func exchangeError(ctx context.Context, command string, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", command, context.Cause(ctx))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%s: %w", command, ErrTimeout)
	default:
		return fmt.Errorf("%s: %w: %w", command, ErrUnreachable, err)
	}
}

// refusal carries charon's own words.
func refusal(command, errmsg string) error {
	if errmsg == "" {
		errmsg = "no reason given"
	}
	return fmt.Errorf("%s: %w: %s", command, ErrRefused, errmsg)
}
