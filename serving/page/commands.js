/** curl commands for what the page does, ready for a POSIX shell. */

import { shellQuote } from "./dom.js";

/** The header that stands for an API key, without writing the key itself anywhere. */
export const KEY_HEADER = '-H "Authorization: Bearer $CONVMAE_API_KEY"';

/**
 * [title, command] pairs for a classification and, where given, the features, of the photo `fileName`.
 * `paths` holds the two requests' paths with queries, the second null where there are no feature levels.
 */
export function curlCommands(origin, fileName, [classifyPath, featuresPath], withKey) {
  const photo = `--data-binary ${shellQuote(`@${fileName}`)}`;
  const key = withKey ? ` ${KEY_HEADER}` : "";
  const commands = [["Classes", `curl -s${key} ${photo} ${shellQuote(`${origin}/${classifyPath}`)}`]];
  if (featuresPath) {
    const accept = "-H 'Accept: application/x-safetensors'";
    const url = shellQuote(`${origin}/${featuresPath}`);
    commands.push(["Feature levels", `curl -s${key} ${photo} ${accept} ${url} -o features.safetensors`]);
  }
  return commands;
}
