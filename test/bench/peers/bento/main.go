// Command bento is Bento (github.com/warpstreamlabs/bento) with what the
// comparison needs: HTTP in, the SQLite buffer, Kafka out. Bento's own command
// has the same run time, and every cloud's SDK beside it.
package main

import (
	"context"

	"github.com/warpstreamlabs/bento/public/service"

	_ "github.com/warpstreamlabs/bento/public/components/io"
	_ "github.com/warpstreamlabs/bento/public/components/kafka"
	_ "github.com/warpstreamlabs/bento/public/components/pure"
	_ "github.com/warpstreamlabs/bento/public/components/sql/base"
	_ "modernc.org/sqlite"
)

func main() { service.RunCLI(context.Background()) }
