package punch

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/pion/logging"
)

// pionLogs makes pion's loggers write to log. Everything is debug: what pion
// calls a warning is mostly a stray packet, and what matters to an operator is
// said by this package.
type pionLogs struct {
	log *slog.Logger
}

func (l pionLogs) NewLogger(scope string) logging.LeveledLogger {
	return pionLogger{l.log.With("pion", scope)}
}

// levelTrace is below slog's lowest: pion traces every packet.
const levelTrace = slog.LevelDebug - 4

type pionLogger struct {
	log *slog.Logger
}

func (l pionLogger) write(level slog.Level, msg string) {
	l.log.Log(context.Background(), level, msg)
}

func (l pionLogger) writef(level slog.Level, format string, args []any) {
	if l.log.Enabled(context.Background(), level) {
		l.write(level, fmt.Sprintf(format, args...))
	}
}

func (l pionLogger) Trace(msg string)             { l.write(levelTrace, msg) }
func (l pionLogger) Tracef(f string, args ...any) { l.writef(levelTrace, f, args) }
func (l pionLogger) Debug(msg string)             { l.write(slog.LevelDebug, msg) }
func (l pionLogger) Debugf(f string, args ...any) { l.writef(slog.LevelDebug, f, args) }
func (l pionLogger) Info(msg string)              { l.write(slog.LevelDebug, msg) }
func (l pionLogger) Infof(f string, args ...any)  { l.writef(slog.LevelDebug, f, args) }
func (l pionLogger) Warn(msg string)              { l.write(slog.LevelDebug, msg) }
func (l pionLogger) Warnf(f string, args ...any)  { l.writef(slog.LevelDebug, f, args) }
func (l pionLogger) Error(msg string)             { l.write(slog.LevelDebug, msg) }
func (l pionLogger) Errorf(f string, args ...any) { l.writef(slog.LevelDebug, f, args) }
