package agent

import "context"

// Status asks the daemon's goroutine how it is: an answer says that it is not
// stuck, too. Any goroutine may ask while Run runs.
func (d *Daemon) Status(ctx context.Context) (Status, error) {
	var s Status
	err := d.inDaemon(ctx, func() { s = d.status() })
	return s, err
}
