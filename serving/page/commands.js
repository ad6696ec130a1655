/** curl commands for what the page does, ready for a POSIX shell. */

import { shellQuote } from "./dom.js";

/** The header that stands for an API key, without writing the key itself anywhere. */
export const KEY_HEADER = '-H "Authorization: Bearer $CONVMAE_API_KEY"';

/**
 * [title, command] pairs that send the photo `fileName`, one for each of `requests`: {title, path with query, accept,
 * output}, where accept is the media type to ask for and output the file that the answer goes to, or nothing.
 */
export function curlCommands(origin, fileName, requests, withKey) {
  return requests.map(({ title, path, accept, output }) => {
    const words = [
      "curl -s",
      withKey ? KEY_HEADER : null,
      `--data-binary ${shellQuote(`@${fileName}`)}`,
      accept ? `-H ${shellQuote(`Accept: ${accept}`)}` : null,
      shellQuote(`${origin}/${path}`),
      output ? `-o ${output}` : null,
    ];
    return [title, words.filter(Boolean).join(" ")];
  });
}
