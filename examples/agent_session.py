"""What an agent's client and `scmmgpt mcp` say to each other: examine a file, name its cells, read the report; be refused.

Argument: a folder with cells.h5ad, which the server may use. The output is docs/_static/agent_session.txt.
"""

import json
import os
import sys

import anyio
from mcp import Client
from mcp.client.stdio import StdioServerParameters

FOLDER = os.path.realpath(sys.argv[1])
LONGEST = 600


def show(who: str, what: object) -> None:
    text = (what if isinstance(what, str) else json.dumps(what, ensure_ascii=False)).replace(FOLDER, "FOLDER")
    print(f"{who} {text if len(text) <= LONGEST else f'{text[:LONGEST]} ... ({len(text):,} letters)'}", flush=True)


async def session() -> None:
    command = ["-m", "scmmgpt", "mcp", "--folder", FOLDER]
    server = StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))
    async with Client(server) as client:

        async def call(tool: str, **arguments: object):
            show("->", {"tool": tool, **arguments})
            result = await client.call_tool(tool, arguments)
            show("<- refused:" if result.is_error else "<-", result.structured_content or result.content[0].text)
            return result

        show("<-", {"tools": [tool.name for tool in (await client.list_tools()).tools]})
        await call("doctor", path="cells.h5ad")
        named = await call("annotate", path="cells.h5ad", output="named.h5ad", report="report.html", tissue="blood")
        page = await client.read_resource(named.structured_content["report"])
        show("<-", {"resource": named.structured_content["report"], "type": page.contents[0].mime_type})
        show("<-", page.contents[0].text[:15])
        await call("doctor", path="../../etc/passwd")
        await call("annotate", path="cells.h5ad", output="named.h5ad")
        await call("annotate", path="cells.h5ad", output="more.h5ad", labels=["B cell", "<script>alert(1)</script>"])
        await call("generate", text="B cell", num_cells=10**9, output="cells_of_text.h5ad")


anyio.run(session)
