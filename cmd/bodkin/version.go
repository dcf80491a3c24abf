package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// versionInfo is what `bodkin version -o json` prints.
type versionInfo struct {
	Version string `json:"version"`
	// Commit is the revision it was built from, "-dirty" if changed since; left out
	// where the build does not know.
	Commit   string `json:"commit,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"` // as in linux/arm64
}

func newVersion() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  bodkin version\n  bodkin version -o json",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := buildInfo()
			return o.print(cmd, v, func(p *printer) {
				p.printf("bodkin %s\n", v.Version)
				if p.wide {
					t := p.list()
					t.row("commit", v.Commit)
					t.row("go", v.Go)
					t.row("platform", v.Platform)
					t.end()
				}
			})
		},
	}
	o.register(cmd)
	return cmd
}

func buildInfo() versionInfo {
	return versionInfo{Version: buildVersion(), Commit: buildCommit(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
}

// buildVersion prefers what the Makefile set to what Go recorded.
func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "devel" && info.Main.Version != "" {
		return info.Main.Version
	}
	return version
}

func buildCommit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	commit := settings["vcs.revision"]
	if commit != "" && settings["vcs.modified"] == "true" {
		commit += "-dirty"
	}
	return commit
}
